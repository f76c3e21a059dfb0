"""The last denials of each pod, for telling later why something was denied, or would have been but for Audit.

Fed with every event before level and rate limit, and keeps fields as they are: nothing becomes text until somebody
asks. Equal denials are one entry with a count and the times of the first and the last, so a note costs 0.6 us, or 1 us
when it is the first of its kind, and a flood of different ones puts out that pod's own oldest only. At most `PODS`
times `ENTRIES` are kept, each of about 400 octets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Final

from dnsguard.core.model import Seconds
from dnsguard.engine.contracts import EventKind

ENTRIES: Final = 64
"""Different denials remembered of one pod."""
PODS: Final = 1024
"""Pods remembered; the one whose last denial is the oldest is forgotten first."""

KEYS: Final[Mapping[EventKind, tuple[str, ...]]] = {
    EventKind.QUERY_DENIED: ("name", "type"),
    EventKind.QUERY_AUDITED: ("name", "type"),
    EventKind.QUERY_FAILED: ("name", "type"),
    EventKind.ANSWER_WITHHELD: ("name", "type"),
    EventKind.ANSWER_AUDITED: ("name", "type"),
    EventKind.FORWARDING_LOOP: ("name",),
    EventKind.QUERY_LIMITED: ("limit",),
    EventKind.QUERY_REFUSED: ("reason",),
    EventKind.FLOW_DENIED: ("address", "port", "protocol"),
    EventKind.FLOW_AUDITED: ("address", "port", "protocol"),
}
"""What is remembered, and the fields that tell one denial from another: all but what a pod could vary at will."""


_ABOUT: Final = {kind: itemgetter("pod", *fields) for kind, fields in KEYS.items()}


class Denial:
    """Equal denials of one pod: `fields` are those in `KEYS`, `reason` is that of the last."""

    __slots__ = ("_about", "count", "first", "kind", "last", "reason")

    def __init__(self, kind: EventKind, about: tuple[object, ...], now: Seconds) -> None:
        self.kind = kind
        self._about = about
        self.count = 0
        self.first = now
        self.last = now
        self.reason: object = None

    @property
    def fields(self) -> dict[str, object]:
        return dict(zip(("pod", *KEYS[self.kind]), self._about, strict=True))


class Recent:
    """Denials by pod. What no pod is known for is not remembered."""

    def __init__(self, clock: Callable[[], Seconds]) -> None:
        self._clock = clock
        self._pods: OrderedDict[str, OrderedDict[object, Denial]] = OrderedDict()

    def note(self, kind: EventKind, fields: Mapping[str, Any]) -> None:
        """Remember it if it is a denial of a pod; `count` in the fields is how many packets it stands for."""
        about_of = _ABOUT.get(kind)
        if about_of is None:
            return
        try:
            about = about_of(fields)
        except KeyError:
            return
        pod = about[0]
        table = self._pods.get(pod)
        if table is None:
            if pod is None:
                return
            table = self._begin(pod)
        self._pods.move_to_end(pod)
        key = kind, about
        now = self._clock()
        denial = table.get(key)
        if denial is None:
            denial = table[key] = Denial(kind, about, now)
            if len(table) > ENTRIES:
                table.popitem(last=False)
        else:
            table.move_to_end(key)
        denial.last = now
        denial.count += fields.get("count", 1)
        denial.reason = fields.get("reason")

    def of(self, pod: str) -> list[Denial]:
        """Its denials, the newest first."""
        return [*reversed(self._pods.get(pod, {}).values())]

    def _begin(self, pod: str) -> OrderedDict[object, Denial]:
        table = self._pods[pod] = OrderedDict()
        if len(self._pods) > PODS:
            self._pods.popitem(last=False)
        return table
