"""The log: events and the libraries' own messages as entries of the journal, or lines on standard error.

Text is for people: coloured on a terminal, `key=value` after the sentence. JSON is for programs, one object a line.
Entries of the journal carry every field as one of their own (see `journal`). Writing never waits (see `outlet`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from structlog.typing import Processor

from dnsguard.engine.contracts import EventKind
from dnsguard.observe import journal
from dnsguard.observe.catalog import CATALOG
from dnsguard.observe.events import Event, EventLog, Sink
from dnsguard.observe.outlet import Outlet, open_stream
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.observe.text import printable

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


LIBRARY_LINES: Final = 10
"""Lines a second from one logger of the standard library's `logging`."""


LOST: Final = CATALOG[EventKind.LOG_LINES_DROPPED]


class _Lines:
    """What structlog calls last: a rendered line, or an entry of the journal, into the outlet."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def msg(self, line: str | bytes) -> None:
        self._outlet.write(line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace") + b"\n")

    debug = info = warning = error = critical = msg


@dataclass(frozen=True, slots=True)
class Log:
    """The configured log. `outlet` is to be attached to the loop and closed at the end; `write` is a sink of events."""

    logger: structlog.typing.FilteringBoundLogger
    outlet: Outlet
    write: Sink


def open_log(form: str, level: str, fd: int = 2) -> Log:
    """Start logging to the journal or to `fd`, the standard library's `logging` too (its debug lines are left out).

    `form` and `level` are `log.format` and `log.level` of the configuration; `auto` is the journal when `fd` leads
    there, else text.
    """
    if form == "auto":
        form = "journald" if journal.is_standard_error(fd) else "text"
    renderer = {"json": _json, "journald": _journal}.get(form, lambda: _text(colours=os.isatty(fd)))()
    channel = journal.JournalChannel(journal.SOCKET) if form == "journald" else open_stream(fd)
    outlet = Outlet(channel, lambda count: _lost_line(renderer, count))
    logger = structlog.wrap_logger(
        _Lines(outlet),
        processors=renderer,
        # Events have passed their level before they come here, and it may change.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=True,
    )
    _redirect_logging(logger, max(LEVELS[level], logging.INFO))
    return Log(logger, outlet, partial(_to_journal, outlet) if form == "journald" else partial(_to_lines, logger))


def tell_end(why: str, defect: Exception | None = None) -> None:
    """Say why the process ends before it has a log of its own, or after: to the journal as an event where standard
    error leads there, else in plain words. `defect` is what nobody foresaw; its stack is told, too."""
    if not journal.is_standard_error():
        sys.stderr.write("".join(traceback.format_exception(defect)) if defect else f"dnsguard: {why}\n")
        return
    log = open_log("journald", "info")
    EventLog([log.write], LineLimiter(LIBRARY_LINES), time.monotonic).emit(
        EventKind.START_FAILED, reason="; ".join(why.splitlines()), exc_info=defect
    )
    log.outlet.close()


def _to_journal(outlet: Outlet, event: Event) -> None:
    outlet.write(journal.event_entry(event))


def _to_lines(logger: structlog.typing.FilteringBoundLogger, event: Event) -> None:
    """A text line carries no MESSAGE_ID; a program finds it in JSON and in the journal."""
    exception = {"exc_info": event.exception} if event.exception is not None else {}
    logger.log(event.description.level, event.message, _event=event.kind.value, **event.fields, **exception)


def _journal() -> list[Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        _printable_exception,
        structlog.processors.EventRenamer("message", "_event"),
        _message_id,
        journal.render,
    ]


def _json() -> list[Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _printable_exception,
        structlog.processors.EventRenamer("message", "_event"),
        _message_id,
        structlog.processors.JSONRenderer(),
    ]


def _text(*, colours: bool) -> list[Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _printable_exception,
        structlog.processors.EventRenamer("message", "_event"),
        structlog.dev.ConsoleRenderer(colors=colours, event_key="message", pad_event_to=0, sort_keys=False),
    ]


def _printable_exception(logger: Any, method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """An exception's text may quote a packet."""
    if "exception" in fields:
        fields["exception"] = "\n".join(printable(line) for line in str(fields["exception"]).split("\n"))
    return fields


_MESSAGE_IDS: Final = {kind.value: description.message_id.hex for kind, description in CATALOG.items()}


def _message_id(logger: Any, method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the event's MESSAGE_ID, as the journal will carry it."""
    message_id = _MESSAGE_IDS.get(fields.get("event", ""))
    if message_id is not None:
        fields["message_id"] = message_id
    return fields


def _lost_line(processors: list[Processor], count: int) -> bytes:
    """The line that says how many lines a reader that took none has cost."""
    fields: Any = {"event": LOST.template.format(lines=count), "_event": EventKind.LOG_LINES_DROPPED.value}
    fields["lines"] = count
    for process in processors:
        fields = process(None, "warning", fields)
    return fields if isinstance(fields, bytes) else str(fields).encode("utf-8", "backslashreplace") + b"\n"


class _Redirect(logging.Handler):
    """Records of the standard library's `logging` (asyncio, aiohttp, pyroute2) as lines of this log, each logger with
    its share of them: whoever reaches the metrics' port can make aiohttp complain."""

    def __init__(self, write: Callable[..., Any], level: int) -> None:
        super().__init__(level)
        self._write = write
        self._limiter = LineLimiter(LIBRARY_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        left_out = self._limiter.admit(record.name, "lines", time.monotonic())
        if left_out is None:
            return
        try:
            fields = {"suppressed": left_out["lines"]} if left_out else {}
            exception = None if _is_bad_request(record) else record.exc_info
            self._write(
                record.levelno, printable(record.getMessage()), logger=record.name, exc_info=exception, **fields
            )
        except Exception:
            self.handleError(record)


def _is_bad_request(record: logging.LogRecord) -> bool:
    """A peer's broken HTTP is no defect of ours: it deserves no traceback."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is not None and kind.__module__ == "aiohttp.http_exceptions"


def _redirect_logging(logger: structlog.typing.FilteringBoundLogger, level: int) -> None:
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Redirect):
            root.removeHandler(handler)
    root.addHandler(_Redirect(logger.log, level))
    root.setLevel(level)
    logging.captureWarnings(True)
