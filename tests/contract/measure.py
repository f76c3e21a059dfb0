"""What changes and leases cost over the real kernel: times of `apply`, and from `arm` to the acknowledgement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from statistics import median, quantiles

from dnsguard.core.compile import compile_program
from dnsguard.core.model import Action, Address, LinkIndex, Policy, Program
from dnsguard.core.policy import effective
from dnsguard.engine.contracts import Desired, Write
from tests.contract.nftables import NftSubject, loading, started
from tests.contract.test_enforcer import block, named, tcp, tickets
from tests.node.nftables_lab import LAYOUT

MEASURED = replace(LAYOUT, leases=100_000, flows=200_000, pods=1000)
ARMS = 2000
PORTS = 20


def program(number: int) -> Program:
    """Of an ordinary pod: three names' ports, of which one is its own, a network with a hole, one network denied."""
    rules = (
        block("10.0.5.0/24", action=Action.DENY),
        named("db.test", tcp(5432)),
        named("api.test", (*tcp(443), *tcp(8000, 8010))),
        named("own.test", tcp(10_000 + number % PORTS)),
        block(f"10.{number >> 8}.{number & 255}.0/24", tcp(443), excepts=["10.1.5.128/25"]),
    )
    return compile_program(effective([Policy("web", rules)], Action.DENY))


def pods(count: int, link: LinkIndex) -> dict[tuple[LinkIndex, Address], int]:
    """The pairs of that many pods, two addresses each, with the number of the pod."""
    return {
        (link, address): number
        for number in range(count)
        for address in (Address((0x0AF40000 + number).to_bytes(4)), Address((0xFD << 120 | number).to_bytes(16)))
    }


async def time_of(work: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    await work()
    return 1000 * (time.perf_counter() - begun)


async def changes(subject: NftSubject, count: int) -> Iterator[str]:
    """Times of changes among `count` pods with programs of their own."""
    pairs = pods(count + 1, subject.places[0].link)
    programs = [program(number) for number in range(count + 1)]
    shared = program(9_999)

    def desired(numbers: range) -> Desired:
        runs = {pair: programs[number].name for pair, number in pairs.items() if number in numbers}
        return Desired(tuple(programs[number] for number in numbers), runs)

    steps = {
        "the first": desired(range(count)),
        "nothing": desired(range(count)),
        "one more pod": desired(range(count + 1)),
        "one pod less": desired(range(count)),
        "all to one program": Desired((shared,), {pair: shared.name for pair, n in pairs.items() if n < count}),
        "all to their own": desired(range(count)),
    }
    times = {what: await time_of(lambda to=to: subject.enforcer.apply(to)) for what, to in steps.items()}  # type: ignore[misc]
    return iter([f"{count:5} pods, {what:20} {ms:9.1f} ms" for what, ms in times.items()])


async def latencies(subject: NftSubject) -> str:
    """Of two elements for each answer, one answer after the other."""
    link, own = subject.places[0].link, subject.places[0].v4
    web = program(0)
    await subject.enforcer.apply(Desired((web,), {(link, own): web.name}))
    scope = next(rule.scope.name for rule in web.rules if rule.scope)
    took = []
    for number in range(ARMS):
        writes = [Write(scope, own + (0xC6120000 + 2 * number + n).to_bytes(4), 600_000) for n in (0, 1)]
        ticket = next(tickets)
        begun = time.perf_counter()
        subject.enforcer.arm(ticket, writes)
        assert await subject.settled[ticket] is None
        took.append(1000 * (time.perf_counter() - begun))
        await asyncio.sleep(0.002)
    percentiles = quantiles(took, n=1000)
    return f"median {median(took):.2f} ms, p99 {percentiles[989]:.1f} ms, longest {max(took):.1f} ms"


async def measure() -> None:
    for own in (True, False):
        kind = "owned table" if own else "shared table"
        for count in (100, 1000):
            async with started(MEASURED, own=own) as subject:
                for line in await changes(subject, count):
                    print(f"{kind}: {line}", flush=True)
        for others in (nullcontext, loading):
            async with started(MEASURED, own=own) as subject:
                with others(subject.lab):
                    print(f"{kind}: {others.__name__}: arm to acknowledgement {await latencies(subject)}", flush=True)
                print(f"{kind}: {len(subject.damage)} reports of damage {subject.damage[:1]}")
