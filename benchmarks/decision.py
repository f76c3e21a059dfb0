"""The programs by themselves, on packets made up here (BPF_PROG_TEST_RUN): nanoseconds a packet, by leases."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import kernel
from dnsguard.core.compile import compile_program
from dnsguard.core.model import (
    Action,
    Address,
    DomainPeer,
    LinkIndex,
    Name,
    Pattern,
    Policy,
    PortRange,
    Protocol,
    Rule,
)
from dnsguard.core.policy import effective
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.load import Loaded, load
from dnsguard.enforce.bpf.second import EbpfLayout
from dnsguard.enforce.bpf.syscall import test_run
from dnsguard.enforce.bpf.table import BpfTable
from dnsguard.engine.contracts import Desired, Write

LEASES = (10, 100_000)
REPEAT = 1_000_000
FRESH_FLOWS = 50_000
POD = Address(bytes((10, 99, 1, 2)))
FIRST_PEER = 0x0A800000
LOOPBACK = LinkIndex(1)
"""The link that a program runs on when nothing else is said."""
PORT = 443
SYN, ACK = 0x02, 0x10
UNSPEC = -1
"""The verdict of a packet that is let."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Nanoseconds for each packet."""

    first: float
    """The same first packet of a flow, decided again and again: everything it needs is in the processor's caches."""
    fresh: float
    """First packets of ever new flows to address after address: each flow is made in the map, the clock included."""
    out: float
    """A packet of an open flow, from the pod."""
    back: float
    """To the pod."""


def decisions() -> dict[int, Decision]:
    return {leases: _decision(leases) for leases in LEASES}


def _decision(leases: int) -> Decision:
    with _loaded(leases) as loaded:
        out, back = frame(POD, peer(0), ACK), frame(peer(0), POD, ACK)
        first = _repeated(loaded, "from_pod", frame(POD, peer(0), SYN))
        _repeated(loaded, "to_pod", back)  # the peer has answered: the flow is open
        return Decision(
            first, _fresh(loaded, leases), _repeated(loaded, "from_pod", out), _repeated(loaded, "to_pod", back)
        )


@contextmanager
def _loaded(leases: int) -> Iterator[Loaded]:
    """The programs, attached to nothing, with a pod that may reach that many addresses by their leases."""
    made_for = EbpfLayout(Path(), leases=max(LEASES), flows=4 * FRESH_FLOWS, flows_per_pod=4 * FRESH_FLOWS)
    loaded = load(None, made_for.sizes)
    try:
        loaded.maps["settings"].update(layout.U32.pack(0), made_for.settings())
        rule = Rule(ports=(PortRange(Protocol.TCP, PORT, PORT),), domains=(DomainPeer((Pattern(Name(b"\1x\0")),)),))
        program = compile_program(effective([Policy("load", (rule,))], Action.DENY))
        scope = program.rules[0].scope
        assert scope is not None
        writes = [Write(scope.name, POD + peer(number), 3_600_000) for number in range(leases)]
        BpfTable(loaded.maps).apply(Desired((program,), {(LOOPBACK, POD): program.name}), writes, ())
        yield loaded
    finally:
        loaded.close()


def _repeated(loaded: Loaded, program: str, packet: bytes) -> float:
    """The mean of many runs, as the kernel counts it; its clock has whole nanoseconds."""
    run = test_run(loaded.programs[program], packet, repeat=REPEAT)
    if run.verdict != UNSPEC:
        raise RuntimeError(f"{program} drops a packet that it is to let")
    return float(run.duration_ns)


def _fresh(loaded: Loaded, leases: int) -> float:
    program = loaded.programs["from_pod"]
    with kernel.statistics():
        before = kernel.runs(program)
        for number, port in zip(range(FRESH_FLOWS), itertools.cycle(range(20_000, 60_000))):
            # a stride that shares no factor with the number of leases: neighbours do not follow one another
            test_run(program, frame(POD, peer(number * 7919 % leases), SYN, port))
        return (kernel.runs(program) - before).each


def peer(number: int) -> Address:
    return Address((FIRST_PEER + number).to_bytes(4))


def frame(source: Address, target: Address, flags: int, pod_port: int = 1025) -> bytes:
    """An Ethernet frame of TCP between the pod and port PORT of a peer, with sums that nobody looks at."""
    ports = (pod_port, PORT) if source == POD else (PORT, pod_port)
    tcp = struct.pack("!HHIIBBHHH", *ports, 1, 1, 5 << 4, flags, 65535, 0, 0)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, Protocol.TCP, 0, source, target)
    return bytes(12) + b"\x08\x00" + ip + tcp
