"""The calls of the control socket and the shapes of their results: what the daemon answers and the CLI prints.

Every value is JSON. Lists of rows travel one object a line, so that a hundred thousand leases neither stall the daemon
nor need memory twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NotRequired, TypedDict

from dnsguard.core.errors import DnsguardError, MissingFeatureError
from dnsguard.core.model import Seconds

SOCKET_NAME: Final = "control.sock"
VERSION_HEADER: Final = "Dnsguard-Version"

DONE, WRONG, USAGE, DENIED, MISSING = 0, 1, 2, 3, 77
"""Exit codes: done; the input or the state is wrong; usage; denied; missing privilege or kernel feature."""


class CallError(DnsguardError):
    """A call that failed, with the exit code that the CLI ends with."""

    def __init__(self, text: str, exit_code: int = WRONG) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def exit_code_of(error: DnsguardError) -> int:
    """What a command ends with when this stopped it."""
    if isinstance(error, CallError):
        return error.exit_code
    return MISSING if isinstance(error, MissingFeatureError) else WRONG


@dataclass(frozen=True, slots=True)
class Call:
    """`POST` changes something. `rows`: the result is a list, sent one object a line; `live`: one without an end, whose
    rows are sent as they come."""

    method: str
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    rows: bool = False
    live: bool = False
    limit: Seconds = 10.0
    """How long the daemon may take."""
    late: str = ""
    """What whoever waited for so long is told besides."""


CALLS: Final[Mapping[str, Call]] = {
    "status": Call("GET"),
    "version": Call("GET"),
    "pods": Call("GET", optional=frozenset({"pod"}), rows=True),
    "leases": Call("GET", optional=frozenset({"pod"}), rows=True),
    "explain": Call(
        "GET",
        required=frozenset({"pod"}),
        optional=frozenset({"name", "type", "address", "port", "protocol"}),
    ),
    "denials": Call("GET", required=frozenset({"pod"}), rows=True),
    "monitor": Call("GET", optional=frozenset({"type", "pod"}), live=True),
    "learn": Call("GET", rows=True, limit=60.0),
    "reload": Call("POST", limit=120.0, late="it goes on, and `dnsguard status` tells how it ended"),
}
"""Parameters are texts. `explain` takes `name` and `type`, or `address`, `port` and `protocol`. `type` of `monitor` is
any of `EventType` with commas between; without it everything is told."""


class EventType(StrEnum):
    """What can be watched live."""

    QUERY = "query"
    DROP = "drop"
    LEASE = "lease"
    POLICY = "policy"


class Version(TypedDict):
    version: str


class Spread(TypedDict):
    """How long something took, since the start: of so many, `seconds` in all; half and 99 of 100 took no longer than
    `p50` and `p99`. Those are None where there was none yet, or where it is longer than is told apart."""

    count: int
    seconds: float
    p50: float | None
    p99: float | None


class UpstreamStatus(TypedDict):
    address: str
    up: bool
    asked: int
    """Attempts that were sent to it."""
    failed: int
    """Attempts without an answer."""
    latency: Spread
    """From an attempt's sending to its answer."""


class Gap(TypedDict):
    """A link on which one of the enforcers does not decide, and why."""

    enforcer: str
    link: str
    reason: str


class Status(TypedDict):
    version: str
    pid: int
    uptime: float
    """Seconds."""
    mode: str
    ready: bool
    missing: str
    """What readiness waits for; empty when ready."""
    config: str
    allowlist: str
    generation: int
    rejected: str
    """What was wrong with the last reload, a line for each error; empty when nothing was."""
    late: list[str]
    """What of config.yaml takes effect at a restart only, as `file:line:column: ...`."""
    reloading: bool
    """Whether a reload is under way, which `generation` and `rejected` know nothing of yet."""
    pods: int
    pods_limit: int
    leases: int
    lease_elements: int
    """What the leases take in the kernel, of at most `leases_limit`."""
    leases_limit: int
    in_flight: int
    held_answers: int
    tcp_connections: int
    """Of pods, open now."""
    cache_entries: int
    writer_busy: float
    """Seconds that the writer to the kernel has been at its present work; 0 when it has none."""
    counted: float
    """Seconds since the kernel's counters were read."""
    replies: dict[str, int]
    """By rcode, the most frequent first."""
    latency: Spread
    """From a question's arrival to its reply; without those that the kernel answered."""
    commits: dict[str, Spread]
    """By enforcer: one transaction of leases, to its acknowledgement."""
    totals: dict[str, int]
    """The metrics' counters, each without its labels, by the names of `engine.counters.Counters` and
    `observe.metrics.Gauges`."""
    queries: int
    denied: int
    audited: int
    """Questions that Audit let through and that would have been denied."""
    enforcers: list[str]
    absent: dict[str, str]
    """Enforcers that the configuration asks for and that decide on no link: why."""
    gaps: list[Gap]
    upstreams: list[UpstreamStatus]


class PodRow(TypedDict):
    pod: str
    addresses: list[str]
    link: str
    policy: str
    """The policies' names, joined with `+`."""
    default: str
    """Accept or Deny: what happens when no rule decides."""
    rules: int
    leases: int
    denied: int
    """Packets dropped since the daemon started, read from the kernel every few seconds."""
    audited: int
    """Packets that passed in Audit and would have been dropped; read as `denied` is."""
    answered_in_kernel: int
    """Questions that never came up to the daemon; read as `denied` is."""
    origin: str
    """file:line:column of the allowlist's entry; empty without one."""


class LeaseRow(TypedDict):
    pod: str
    address: str
    scope: str
    ports: str
    """`tcp/443 tcp/8000-8010`, or `any`."""
    names: list[str]
    remaining: float
    """Seconds until it ends unless it is renewed."""


class RuleRow(TypedDict):
    policy: str
    tier: str
    action: str
    peers: list[str]
    ports: str
    origin: str
    """file:line:column."""


class NearRow(TypedDict):
    """A rule that nearly allowed it."""

    miss: str
    """By what it missed: a `Miss` of core/nearest.py, `ended`, `closed` or `elsewhere`."""
    policy: str
    peer: str
    ports: str
    origin: str
    """file:line:column."""
    text: str


class Addition(TypedDict):
    """What would allow it: `text` is to be inserted where `line` and `column` say, both 1-based."""

    file: str
    line: int
    column: int
    """1: `text` is a line of its own, put before this one."""
    text: str
    remark: str
    """What to think of before; may be empty."""
    also: NotRequired[Addition]
    """What must be inserted besides, and after it: its place comes before in the file."""


class DenialRow(TypedDict):
    """Equal denials of the past, or what would have been denied but for Audit."""

    pod: str
    event: str
    """The name of its kind of event: `query_denied`, `flow_audited` ..."""
    subject: str
    """`db.example.com A`, `192.0.2.1 tcp/443`, or the limit."""
    reason: str
    """Of the last one."""
    count: int
    """Packets, or questions that reached the daemon: one that is repeated, the kernel denies by itself for 30 s."""
    first: float
    """Seconds ago."""
    last: float
    """Seconds ago."""
    nearest: list[NearRow]
    add: Addition | None
    remark: NotRequired[str]
    """What to do when something is missing and there is nothing to add."""


class Explanation(TypedDict):
    pod: str
    policy: str
    subject: str
    """`db.example.com A` or `192.0.2.1 tcp/443`."""
    verdict: str
    """`allowed` or `denied`."""
    reason: str
    rules: list[RuleRow]
    leases: list[LeaseRow]
    """The live leases that bear on it; always empty when it was worked out from files."""
    source: str
    """`live` or `files`."""
    past: list[DenialRow]
    """The remembered denials of the same, the newest first; always empty when it was worked out from files."""
    nearest: list[NearRow]
    """Empty when it is allowed."""
    add: Addition | None
    remark: NotRequired[str]
    """As in a `DenialRow`."""


class Reloaded(TypedDict):
    generation: int
    diagnostics: list[str]
    """`file:line:column: warning: text`."""
    changed: NotRequired[int]
    """Pods whose program is another one now."""
    mode: NotRequired[str]
    """The mode that is in force since, when it was another before."""


def socket_path(runtime: Path) -> Path:
    """Where the control socket is; raises CallError when the path does not fit into a socket's address (unix(7))."""
    path = runtime / SOCKET_NAME
    longest = 107 - len(".new")
    if len(bytes(path)) > longest:
        raise CallError(f"paths.runtime is too long: {path} must have at most {longest} octets to be a socket")
    return path
