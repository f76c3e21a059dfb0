"""The rooms of a running daemon, for those that look at all of them: reports, metrics and health."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnsguard.config.groups import Settings
from dnsguard.core.model import Seconds
from dnsguard.daemon.drops import AnsweredInKernel, Drops
from dnsguard.daemon.kernel_counters import KernelCounters
from dnsguard.daemon.policies import Policies
from dnsguard.daemon.readiness import Readiness
from dnsguard.daemon.reloads import Reloads
from dnsguard.daemon.seen import Seen
from dnsguard.daemon.supervision import Supervision
from dnsguard.enforce.nftables import NftEnforcer
from dnsguard.engine.engine import Engine
from dnsguard.listen.tcp import TcpListener
from dnsguard.listen.udp import UdpListener
from dnsguard.observe.events import EventLog
from dnsguard.observe.outlet import Outlet


@dataclass(slots=True)
class Configured:
    """What the daemon was told: its settings (others after a reload), the file they came from, and when it started."""

    settings: Settings
    file: Path
    started: Seconds


@dataclass(frozen=True, slots=True)
class Rooms:
    """Each as it stands between the start and the stop."""

    configured: Configured
    readiness: Readiness
    engine: Engine
    enforcer: NftEnforcer
    enforcers: Sequence[str]
    """The lines that enforce, by name."""
    udp: UdpListener
    tcp: TcpListener
    policies: Policies
    reloads: Reloads
    supervision: Supervision
    drops: Drops
    answered_in_kernel: AnsweredInKernel
    kernel_counters: KernelCounters
    seen: Seen
    events: EventLog
    outlet: Outlet
    now: Callable[[], Seconds]
