"""How long a flow is remembered without a packet: as long as the node's connection tracking does, so that the two
lines forget it at the same time. Shorter where there may be many: flows that are over, and connections towards a pod
that it has not answered, whose next SYN begins them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dnsguard.enforce.bpf.layout import Idle

_SYSCTLS = {
    Idle.TCP_NEW: ("tcp_timeout_syn_sent", 120),
    Idle.TCP: ("tcp_timeout_established", 432_000),
    Idle.TCP_CLOSING: ("tcp_timeout_fin_wait", 120),
    Idle.TCP_CLOSED: ("tcp_timeout_close", 10),
    Idle.UDP_NEW: ("udp_timeout", 30),
    Idle.UDP: ("udp_timeout_stream", 120),
    Idle.SCTP: ("sctp_timeout_established", 210),
    Idle.ICMP: ("icmp_timeout", 30),
    Idle.OTHER: ("generic_timeout", 600),
}
"""Below net.netfilter.nf_conntrack_, and what a kernel begins with, in seconds."""
ASKED_SECONDS = 10
CUT_SECONDS = 600


def idle_ns(root: Path = Path("/proc/sys/net/netfilter")) -> Iterable[int]:
    """In the order of `Idle`."""
    seconds = {idle: _read(root / f"nf_conntrack_{name}", usual) for idle, (name, usual) in _SYSCTLS.items()}
    seconds |= {Idle.TCP_ASKED: ASKED_SECONDS, Idle.CUT: CUT_SECONDS}
    return [seconds[idle] * 1_000_000_000 for idle in Idle]


def _read(path: Path, usual: int) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no connection tracking yet, or none of this protocol
        return usual
