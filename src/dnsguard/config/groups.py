"""config.yaml as frozen groups of typed values: every key, its meaning, its default and its range.

The docstring under a field is its description in the reference, in the JSON Schema and in editors.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator
from pydantic.alias_generators import to_camel

from dnsguard.config.durations import duration_text
from dnsguard.config.fields import (
    Addresses,
    Duration,
    Intercepted,
    Interfaces,
    ListenText,
    Mark,
    PathText,
    ProtectedEntries,
    Upstreams,
    wrong,
)
from dnsguard.config.networks import Endpoint, parse_address
from dnsguard.core.model import Action, Network


class Mode(StrEnum):
    ENFORCE = "Enforce"
    AUDIT = "Audit"


class DefaultAction(StrEnum):
    DENY = "Deny"
    ALLOW = "Allow"

    @property
    def action(self) -> Action:
        """The same as the compiler says it."""
        return Action.ACCEPT if self is DefaultAction.ALLOW else Action.DENY


class DenyResponse(StrEnum):
    NXDOMAIN = "NXDOMAIN"
    NODATA = "NODATA"
    REFUSED = "REFUSED"


class Ebpf(StrEnum):
    AUTO = "Auto"
    ON = "On"
    OFF = "Off"


class Revocation(StrEnum):
    CUT = "Cut"
    DRAIN = "Drain"


class OnExceed(StrEnum):
    REFUSE = "Refuse"
    DROP = "Drop"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    AUTO = "auto"
    JOURNALD = "journald"
    TEXT = "text"
    JSON = "json"


class LoggedQueries(StrEnum):
    NONE = "None"
    DENIED = "Denied"
    ALL = "All"


class Group(BaseModel):
    """Frozen; keys in camelCase as in the file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, use_attribute_docstrings=True)


class Pods(Group):
    """Which links are governed."""

    interfaces: Interfaces = ("veth*", "eni*", "cali*")
    """Host sides of pod links (routed, not bridged): names, or beginnings of names with a `*` at the end.
    Governed is what enters by them."""
    exclude: Addresses = ()
    """Pod addresses that are never intercepted or enforced (CoreDNS's own), where they are routed to that link.
    The same source on another link is a forgery and dropped."""


class Dns(Group):
    """How questions are answered."""

    intercept: Intercepted = ()
    """`Any`, or the list of addresses whose port 53 is intercepted; other traffic to port 53 is then an ordinary
    connection."""
    listen_port: Annotated[StrictInt, Field(ge=1, le=65535)] = 15353
    """The port on which intercepted queries are received. Closed to everything that was not intercepted."""
    deny_response: DenyResponse = DenyResponse.NXDOMAIN
    """What a denied name gets: `NXDOMAIN` (search lists go on), `NODATA` or `REFUSED`."""
    timeout: Annotated[Duration, Field(ge=0.05, le=10.0)] = 1.0
    """How long one upstream may take for one attempt."""
    deadline: Annotated[Duration, Field(ge=0.1, le=30.0)] = 4.0
    """How long a pod waits for a reply at most. glibc and musl give up at 5 s."""
    serve_stale: Annotated[Duration, Field(ge=0.0, le=604_800.0)] = 300.0
    """How long past its TTL an answer may be served when no upstream answers within 1.8 s; 0 is never."""
    prefetch: StrictBool = True
    """Ask again for names in use before their answers end."""

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.timeout > self.deadline:
            raise wrong(
                f"longer than deadline ({duration_text(self.deadline)}); make it shorter, or deadline longer",
                "timeout",
                "deadline",
            )
        return self


class Interception(Group):
    """Numbers that dnsguard uses in the kernel; change them where something else on the node uses the same."""

    mark: Mark = 0x1000
    """Packet mark of intercepted queries, matched under itself as the mask."""
    reply_mark: Mark = 0x2000
    """Packet mark of dnsguard's own replies, matched under itself as the mask. Shares no bit with `mark`."""
    rule_priority: Annotated[StrictInt, Field(ge=1, le=32765)] = 5
    """Priority of the `ip rule` that delivers intercepted queries; before those of the CNI."""
    table: Annotated[StrictInt, Field(ge=1, le=0xFFFFFFFF)] = 5353
    """Routing table of that rule; 253 to 255 are the kernel's own."""
    nflog_group: Annotated[StrictInt, Field(ge=0, le=65535)] = 5353
    """NFLOG group by which denied packets are reported."""

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        if self.mark & self.reply_mark:
            text = (
                f"0x{self.reply_mark:x} shares bits with mark 0x{self.mark:x}; write a mark of other bits, like 0x2000"
            )
            raise wrong(text, "replyMark", "mark")
        if 253 <= self.table <= 255:
            raise wrong("tables 253 to 255 are the kernel's own; write another number, like 5353", "table")
        return self


class Enforcement(Group):
    """What enforces, and how a permission is taken back."""

    ebpf: Ebpf = Ebpf.AUTO
    """The second, faster line beside nftables: `Auto` uses it where the kernel can, `On` insists, `Off` never."""
    revocation: Revocation = Revocation.CUT
    """What becomes of open flows that a new policy no longer allows: `Cut` at once, or `Drain` until they end."""


class Ttl(Group):
    """How long an answer may be used. Shown TTL = min(TTL, cap); lease = max(shown TTL, floor) + grace."""

    floor: Annotated[Duration, Field(ge=0.0, le=86_400.0)] = 30.0
    """The shortest lease, before grace. Java caches 30 s whatever the TTL."""
    cap: Annotated[Duration, Field(ge=1.0, le=604_800.0)] = 3600.0
    """The longest TTL shown to a pod."""
    grace: Annotated[Duration, Field(ge=1.0, le=3600.0)] = 10.0
    """How much longer than the shown TTL an address stays open."""

    @model_validator(mode="after")
    def _lease(self) -> Self:
        if self.floor + self.grace < 2:
            raise wrong("floor and grace together must be at least 2s; write a floor of at least 1s", "floor", "grace")
        return self


class Answers(Group):
    """What an answer may contain."""

    protected: ProtectedEntries = ("default",)
    """Addresses that no answer may contain: `default` and CIDRs; `[]` is none. `default` is loopback, 0.0.0.0/8,
    link-local (metadata services), multicast, broadcast, 168.63.129.16, 100.100.100.200, fd00:ec2::/32, fd20:ce::254,
    the node's own addresses, and every protected address mapped or translated into IPv6."""

    @property
    def protect_default(self) -> bool:
        return "default" in self.protected

    @property
    def protected_networks(self) -> tuple[Network, ...]:
        """The CIDRs written out; those that `default` stands for are not among them."""
        return tuple(entry for entry in self.protected if not isinstance(entry, str))


class Limits(Group):
    """What one pod may use."""

    queries_per_second: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 1000
    """Queries a second, on average. One with a long answer counts as more: for each 16 addresses beyond the first 16,
    and each 128 octets beyond 512."""
    burst: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 2000
    """Queries at once, before the average counts."""
    in_flight: Annotated[StrictInt, Field(ge=1, le=100_000)] = 1000
    """Queries waiting for a reply."""
    tcp_connections: Annotated[StrictInt, Field(ge=0, le=10_000)] = 20
    """Open DNS connections over TCP."""
    unique_names_per_minute: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 3000
    """Different names in a minute: a bound on what questions can carry out."""
    log_lines: Annotated[StrictInt, Field(ge=0, le=1_000_000)] = 10
    """Lines in the log in a second; the rest are counted in the next."""
    on_exceed: OnExceed = OnExceed.REFUSE
    """`Refuse` answers REFUSED, and drops from ten times the limit on; `Drop` drops."""
    addresses_per_name: Annotated[StrictInt, Field(ge=1, le=100_000)] = 1000
    """Leases alive for one name."""
    leases_per_pod: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 10_000
    """Leases alive; one counts once for each scope and address. Four names for each may justify them, all in all."""
    flows_per_pod: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 10_000
    """Open flows that eBPF remembers. Beyond it, what a pod sends is decided packet by packet, and connections towards
    it are answered only where it might begin them itself."""
    kernel_answers_per_pod: Annotated[StrictInt, Field(ge=0, le=1_000_000)] = 1000
    """Answers that the kernel gives by itself."""


class Tables(Group):
    """The node's totals."""

    pods: Annotated[StrictInt, Field(ge=1, le=100_000)] = 1000
    """Governed pods."""
    leases: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 100_000
    """Lease elements; a lease is one for each address of its pod in that family."""
    flows: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 200_000
    """Flows that the kernel remembers for dnsguard: those that were cut, and with eBPF those that are open."""
    answers: Annotated[StrictInt, Field(ge=0, le=10_000_000)] = 50_000
    """Answers that the kernel gives by itself."""
    prefixes: Annotated[StrictInt, Field(ge=1, le=10_000_000)] = 100_000
    """IP blocks of all programs, after `except` is carved out."""


class Cache(Group):
    """Answers kept, shared by all pods."""

    entries: Annotated[StrictInt, Field(ge=0, le=10_000_000)] = 50_000
    """Answers kept; 0 keeps none."""


class Tcp(Group):
    """DNS over TCP."""

    idle: Annotated[Duration, Field(ge=0.1, le=3600.0)] = 10.0
    """How long a connection may say nothing."""
    total: Annotated[Duration, Field(ge=0.1, le=86_400.0)] = 120.0
    """How long a connection may last."""

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.idle > self.total:
            raise wrong(
                f"longer than total ({duration_text(self.total)}); make it shorter, or total longer", "idle", "total"
            )
        return self


class Log(Group):
    """What is logged, and how."""

    level: LogLevel = LogLevel.INFO
    """The least that is logged."""
    format: LogFormat = LogFormat.AUTO
    """`auto` is journald's native protocol when standard error leads to the journal, and text (with colours on a
    terminal) otherwise."""
    queries: LoggedQueries = LoggedQueries.DENIED
    """Which queries are logged."""


class Metrics(Group):
    """Prometheus metrics and health over HTTP."""

    listen: ListenText = Endpoint(parse_address("127.0.0.1"), 9353)
    """Where they are served, with the port; `null` is nowhere."""


class Paths(Group):
    """Where dnsguard keeps things."""

    state: PathText = Path("/var/lib/dnsguard")
    """What `learn` has seen."""
    runtime: PathText = Path("/run/dnsguard")
    """Control socket, lock, and the names behind leases. On tmpfs."""
    bpffs: PathText = Path("/sys/fs/bpf/dnsguard")
    """Pinned eBPF programs and maps."""


class Settings(Group):
    """The daemon's configuration. Every key is optional but `upstreams`."""

    api_version: Literal["dnsguard/v1"] = "dnsguard/v1"
    """The version of this format."""
    kind: Literal["Configuration"] = "Configuration"
    """Tells this file from an allowlist."""
    mode: Mode = Mode.ENFORCE
    """`Enforce`, or `Audit`: the final drop becomes count, event and pass; protected addresses and limits only
    report."""
    default_action: DefaultAction = DefaultAction.DENY
    """For pods that no policy selects: `Deny` or `Allow`."""
    allowlist: PathText = Path("/etc/dnsguard/allowlist.yaml")
    """The file that says what each pod may resolve and reach."""
    pods: Pods = Pods()
    upstreams: Upstreams
    """The resolvers that are asked for allowed names: addresses, with a port when it is not 53 (`10.96.0.11:5353`,
    `"[fd00::10]:53"`)."""
    dns: Dns = Dns()
    interception: Interception = Interception()
    enforcement: Enforcement = Enforcement()
    ttl: Ttl = Ttl()
    answers: Answers = Answers()
    limits: Limits = Limits()
    tables: Tables = Tables()
    cache: Cache = Cache()
    tcp: Tcp = Tcp()
    log: Log = Log()
    metrics: Metrics = Metrics()
    paths: Paths = Paths()
