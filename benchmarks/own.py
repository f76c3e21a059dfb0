"""The figures that only dnsguard has, as text: lines for the terminal, sections for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.dnsguard_alone import Alone
from benchmarks.path import BOTH, Path
from benchmarks.results import Results
from benchmarks.scale import Scale
from benchmarks.told import Told

MANY = 1_000_000
"""Octets from which a map is worth a mention."""


def own_figures(results: Results) -> list[str]:
    return [line for _, lines in _parts(results) for line in lines]


def sections(results: Results) -> list[str]:
    made = []
    for title, lines in _parts(results):
        made += [f"## {title}", "", *(f"- {line}" for line in lines), ""]
    return made


def _parts(results: Results) -> Iterator[tuple[str, list[str]]]:
    if results.alone:
        yield "dnsguard by itself", _alone(results.alone)
    if results.told:
        yield "Told by the kernel", [*_told(results.told)]
    if results.path:
        yield "The path of a packet", [*_path(results.path)]
    if isinstance(results.scale, Scale):
        yield "A full node", [*_scale(results.scale)]
    elif results.scale:
        yield "A full node", [f"Not measured: {results.scale}"]


def _alone(alone: Alone) -> list[str]:
    verdicts = ", ".join(f"{cost:.2f} us with {count:,}" for count, cost in alone.verdicts.items())
    return [
        *(
            f"From leases handed over to {line} to the kernel's acknowledgement: median {commit.p50:.0f} us, "
            f"p99 {commit.p99:.0f} us at saturation; median {commit.light:.0f} us at a light load."
            for line, commit in alone.commits.items()
        ),
        f"Memory for 10,000 leases, their answers' cache entries included: {alone.memory / 1e6:.1f} MB.",
        f"A verdict (patterns): {verdicts}.",
        f"Fresh names resolved and connected to at once: {alone.connected:,} at the first SYN, {alone.failed} failed.",
    ]


def _told(told: dict[int, Told]) -> Iterator[str]:
    for names, each in told.items():
        yield (
            f"{names:,} names known: {each.qps:,.0f} queries/s, {each.all:.2f} us of all cores for each (the program's "
            f"own time, by the kernel's accounting: {each.program:.0f} ns; the rest carries the question and the reply "
            f"through the link and the pod's own network stack), p50 {each.p50:.1f} us, p99 {each.p99:.1f} us; "
            f"{100 * min(1.0, each.share):.1f} % answered by the kernel."
        )


def _path(path: Path) -> Iterator[str]:
    for leases, cost in path.decisions.items():
        yield (
            f"With {leases:,} leases: {cost.first:.0f} ns to decide the same first packet again and again, "
            f"{cost.fresh:.0f} ns for ever new flows to address after address, each remembered; {cost.out:.0f} ns for "
            f"a packet of an open flow from the pod, {cost.back:.0f} ns for one to it (BPF_PROG_TEST_RUN)."
        )
    live = ", ".join(f"{cost:.0f} ns in {name}" for name, cost in path.live.items())
    yield f"Under TCP at full speed, by the kernel's accounting of live packets: {live}."
    for name, through in path.through.items():
        yield (
            f"{'dnsguard, both lines' if name == BOTH else name}: TCP {through.tcp / 1e9:.2f} Gbit/s, "
            f"UDP {through.udp / 1e9:.3f} Gbit/s, {through.connections:,.0f} new TCP connections a second "
            f"({1e6 / through.connections:.1f} us each, one after the other)."
        )


def _scale(scale: Scale) -> Iterator[str]:
    size = scale.size
    yield (
        f"{size.pods:,} pods with a link and a program each, 10 rules a program; from the start to ready: "
        f"{scale.start:.0f} s (the kernel takes some 30 ms to put the first program on a link)."
    )
    yield (
        f"{scale.leases:,} leases, all from answers: {scale.rate:,.0f} a second, in the eBPF map and in nftables' set; "
        f"each answer went to another pod than the one before; {scale.failed:,} failed and were asked again."
    )
    grown = scale.resident - scale.before
    yield (
        f"Memory of the process: {scale.before / 1e6:.0f} MB before, {scale.resident / 1e6:.0f} MB with the leases "
        f"({grown / max(1, scale.leases):.0f} octets a lease)."
    )
    maps = sorted(scale.maps.items(), key=lambda each: -each[1])
    large = ", ".join(f"{name} {octets / 1e6:.1f}" for name, octets in maps if octets >= MANY)
    yield f"Memory of the eBPF maps, as the kernel accounts it: {sum(scale.maps.values()) / 1e6:.1f} MB ({large})."
    yield f"The kernel's own memory grew with the leases by {scale.kernel / 1e6:.0f} MB, nftables' set included."
    yield f"A reload that changes one pod's policy: {scale.one:.2f} s; one that changes every pod's: {scale.all:.2f} s."
