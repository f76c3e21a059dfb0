"""Events on their way to an operator: levelled, rate-limited (`shares.py`), described, and made safe to print.

`EventLog` is the `Events` of `engine/contracts.py`. It hands each event that passes to every sink. Turning fields into
text happens here, after the rate limit, so that a flood of denials costs the sender's pod its lines and the daemon
about 1 us each; one that passes costs 5 us before it is written. Who watches live gets events before level and limit.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from dnsguard.core.model import Name, Seconds
from dnsguard.core.names import to_text
from dnsguard.engine.contracts import EventKind
from dnsguard.observe.catalog import CATALOG, INFO, Description
from dnsguard.observe.ratelimit import NOTHING, LeftOut, LineLimiter, Report
from dnsguard.observe.recent import Recent
from dnsguard.observe.shares import OFTEN, OFTEN_LINES, SELDOM, SELDOM_LINES, about
from dnsguard.observe.text import printable

FieldValue = str | int | float

UNSAID: Final = {
    "None": frozenset({EventKind.QUERY_ALLOWED, EventKind.QUERY_DENIED, EventKind.QUERY_AUDITED}),
    "Denied": frozenset({EventKind.QUERY_ALLOWED}),
    "All": frozenset[EventKind](),
}
"""`log.queries` -> the judged questions that are no events."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as sinks get it: every text is printable and holds no terminal escape."""

    kind: EventKind
    description: Description
    message: str
    fields: Mapping[str, FieldValue]
    exception: BaseException | None = None
    """What an unexpected error was, with where it came from."""


Sink = Callable[[Event], None]
"""Gets every event that passes; must return at once."""


class Watcher(Protocol):
    """One who watches events of `kinds` live."""

    kinds: frozenset[EventKind]

    def wants(self, kind: EventKind, fields: Mapping[str, object]) -> bool:
        """Asked before the event is put into words."""

    def offer(self, event: Event) -> None:
        """An event that it wanted; must return at once."""


def field_value(key: str, value: object) -> FieldValue:
    """One field as a number or printable text. Octets are a name under `name` and an address elsewhere."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, bytes):
        return _name_text(value) if key == "name" else _address_text(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return printable(", ".join(str(field_value(key, item)) for item in value))
    text = printable(str(value))
    # A blank in a name would let a pod write key=value pairs of its own into a line of text.
    return text.replace(" ", "\\032") if key == "name" else text


def _name_text(value: bytes) -> str:
    try:
        return printable(to_text(Name(value)))
    except (ValueError, IndexError):
        return value.hex()


def _address_text(value: bytes) -> str:
    return str(ipaddress.ip_address(value)) if len(value) in (4, 16) else value.hex()


class _Blanks(dict[str, FieldValue]):
    """Fields for a template; what an event does not have reads as a question mark."""

    def __missing__(self, key: str) -> str:
        return "no reason given" if key == "reason" else "?"


def describe(description: Description, fields: Mapping[str, FieldValue]) -> str:
    """The event's sentence."""
    return description.template.format_map(_Blanks(fields, who=fields.get("pod") or fields.get("pod_ip") or "a pod"))


class EventLog:
    """See `engine/contracts.Events`.

    The owner calls `tick` about once a second, so that what was left out about a pod that fell quiet is said as soon
    as its window allows, and `close` at the end.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        limiter: LineLimiter,
        clock: Callable[[], Seconds],
        *,
        queries: str = "Denied",
        level: int = INFO,
        pod_ips: Callable[[str], Collection[bytes]] = lambda pod: (),
    ) -> None:
        """`pod_ips` gives the addresses of the pods of a name, for events that name only the pod."""
        self.watchers: tuple[Watcher, ...] = ()
        self.recent = Recent(clock)
        """The last denials of each pod, said or not."""
        self.suppressed = 0
        """Lines left out by the rate limit since the start."""
        self.failed = 0
        """Events that a defect in a sink or in a field's text kept from being written."""
        self._sinks = tuple(sinks)
        self._limiter = limiter
        self._often, self._seldom = LineLimiter(*OFTEN_LINES), LineLimiter(*SELDOM_LINES)
        self._clock = clock
        self._pod_ips = pod_ips
        self.tune(queries, level)

    def tune(self, queries: str, level: int) -> None:
        """From here on tell of judged questions as `log.queries` says, and of events from this level on."""
        unsaid = UNSAID[queries]
        self._described = {k: d for k, d in CATALOG.items() if d.level >= level and k not in unsaid}
        self._watch(self.watchers)

    def watch(self, watcher: Watcher) -> None:
        """Offer it events until `unwatch`."""
        self._watch((*self.watchers, watcher))

    def unwatch(self, watcher: Watcher) -> None:
        self._watch(tuple(one for one in self.watchers if one is not watcher))

    def _watch(self, watchers: tuple[Watcher, ...]) -> None:
        self.watchers = watchers
        self._watched = frozenset[EventKind]().union(*(one.kinds for one in watchers))
        said = self._watched | self._described.keys()
        self.all_queries = EventKind.QUERY_ALLOWED in said
        self.all_leases = EventKind.LEASE_OPENED in said

    def emit(self, kind: EventKind, /, **fields: object) -> None:
        self.recent.note(kind, fields)
        if kind in self._watched:
            self._show(kind, fields)
        description = self._described.get(kind)
        if description is None:
            return
        left_out = self._admit(description, kind, fields)
        if left_out is None:
            self.suppressed += 1
            return
        if left_out:
            fields["suppressed"] = _kinds_text(left_out)
        self._hand(kind, fields, self._sinks)

    def _admit(self, description: Description, kind: EventKind, fields: Mapping[str, object]) -> LeftOut | None:
        if description.limited:
            return self._limiter.admit(_share(kind, fields), kind, self._clock())
        if kind in OFTEN:
            return self._often.admit(about(kind, fields), kind, self._clock())
        if kind in SELDOM:
            return self._seldom.admit(about(kind, fields), kind, self._clock())
        return NOTHING

    def tick(self) -> None:
        """Say what was left out about whatever is quiet now."""
        now = self._clock()
        self._tell_left_out(*(limiter.due(now) for limiter in (self._limiter, self._often, self._seldom)))

    def close(self) -> None:
        """Say all that was left out, whatever the rate."""
        self._tell_left_out(*(limiter.drain() for limiter in (self._limiter, self._often, self._seldom)))

    def _tell_left_out(self, of_pods: Iterable[Report], *of_the_node: Iterable[Report]) -> None:
        for report in of_pods:
            self._tell(report, pod=report.key)
        for report in itertools.chain(*of_the_node):
            self._tell(report)

    def _tell(self, report: Report, **pod: str) -> None:
        kind, left_out = EventKind.EVENTS_SUPPRESSED, report.left_out
        if kind in self._described:
            told = {"about": report.key, "lines": sum(left_out.values()), "kinds": _kinds_text(left_out)}
            self._hand(kind, {**pod, **told}, self._sinks)

    def _show(self, kind: EventKind, fields: Mapping[str, object]) -> None:
        if those := [one.offer for one in self.watchers if one.wants(kind, fields)]:
            self._hand(kind, fields, those)

    def _hand(self, kind: EventKind, fields: Mapping[str, object], sinks: Iterable[Sink]) -> None:
        description = CATALOG[kind]
        try:
            said = self._addressed(fields)
            texts = {k: field_value(k, v) for k, v in said.items() if v is not None and k != "exc_info"}
            error = fields.get("exc_info")
            exception = error if isinstance(error, BaseException) else None
            event = Event(kind, description, describe(description, texts), texts, exception)
            for sink in sinks:
                sink(event)
        except Exception:
            # A line that cannot be written must not cost a pod its answer; the metric shows that it happened.
            self.failed += 1

    def _addressed(self, fields: Mapping[str, object]) -> Mapping[str, object]:
        """With the addresses of the pod that is named, right behind its name."""
        pod = fields.get("pod")
        if "pod_ip" in fields or not isinstance(pod, str) or not (addresses := self._pod_ips(pod)):
            return fields
        return {"pod": pod, "pod_ip": tuple(addresses), **fields}


def _share(kind: EventKind, fields: Mapping[str, object]) -> str:
    """Whose share of lines an event uses: its pod's; what no pod is known for shares one bucket for each kind.

    Never the address of an unknown source: a forger would have as many shares as addresses.
    """
    pod = fields.get("pod") or (None if kind is EventKind.QUERY_UNKNOWN_SOURCE else fields.get("pod_ip"))
    if pod is None:
        return kind
    return pod if isinstance(pod, str) else str(field_value("pod_ip", pod))


def _kinds_text(left_out: LeftOut) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in left_out.items())
