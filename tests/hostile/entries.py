"""Entries of the journal, made of events whose texts a pod, an upstream or a library chose."""

from __future__ import annotations

import unicodedata

from dnsguard.core.model import Name
from dnsguard.engine.contracts import EventKind
from dnsguard.observe.events import Event, EventLog
from dnsguard.observe.journal import event_entry
from dnsguard.observe.ratelimit import LineLimiter
from dnsguard.observe.text import MAX_TEXT
from tests import journald
from tests.hostile import streams

KNOWN = {"PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE_ID", "MESSAGE", "DNSGUARD_EVENT"}
LONGEST = 12 * MAX_TEXT
"""Of one value: every character as the longest of escapes, and a sentence around several of them."""
ESCAPES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of what a terminal acts on or hides."""


def entries(data: bytes) -> None:
    """A name, a reason and a library's message as fields: no other fields come of them, and nothing for a terminal."""
    name, _, rest = data.partition(streams.SEPARATOR)
    reason, _, message = rest.partition(streams.SEPARATOR)
    said: list[Event] = []
    log = EventLog([said.append], LineLimiter(10), lambda: 0.0)
    for pod in ("shop/a", reason.decode("utf-8", "surrogateescape")):
        log.emit(EventKind.QUERY_DENIED, pod=pod, name=Name(name), type="A", reason=reason.decode("utf-8", "replace"))
    log.emit(EventKind.INTERNAL_ERROR, where="x", reason=message.decode("latin-1"), exc_info=raised(message))
    assert log.failed == 0
    denied, renamed, failed = (journald.fields(event_entry(event)) for event in said)
    fields = ("POD", "NAME", "TYPE", "REASON")
    check(denied, KNOWN | {f"DNSGUARD_{field}" for field in fields})
    check(renamed, KNOWN | {f"DNSGUARD_{field}" for field in fields})
    code = {"CODE_FILE", "CODE_LINE", "CODE_FUNC"}
    check(failed, KNOWN | code | {"DNSGUARD_WHERE", "DNSGUARD_REASON", "DNSGUARD_EXCEPTION"})
    assert dict(denied)["DNSGUARD_POD"] == "shop/a"
    assert " " not in dict(denied)["DNSGUARD_NAME"]


def raised(message: bytes) -> Exception:
    try:
        raise ValueError(message.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        return error


def check(fields: list[tuple[str, str]], expected: set[str]) -> None:
    """Exactly these fields, each once, and no octet in them that a terminal would act on or hide."""
    assert sorted(key for key, _ in fields) == sorted(expected)
    for key, value in fields:
        shown = value.replace("\n", "") if key == "DNSGUARD_EXCEPTION" else value
        assert not ESCAPES & set(map(unicodedata.category, shown))
        assert key == "DNSGUARD_EXCEPTION" or len(value) <= LONGEST
