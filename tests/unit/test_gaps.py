"""Lines that do not decide where they should: counted for each link, and told in as few words as say it."""

from __future__ import annotations

from typing import Any

from dnsguard.control.gaps import gap_texts
from dnsguard.daemon.readiness import Readiness

LINKS = [f"veth{number}" for number in range(8)]


def told(readiness: Readiness) -> list[str]:
    status: Any = {"absent": readiness.absent, "gaps": readiness.gaps()}
    return list(gap_texts(status))


def test_a_line_that_is_absent_is_a_gap_on_every_link_and_told_once_without_the_verifiers_log() -> None:
    readiness = Readiness(insist=False)
    readiness.absent, readiness.links = {"ebpf": "CAP_BPF is missing\nlog\nlog"}, lambda: LINKS

    assert [(gap["enforcer"], gap["link"]) for gap in readiness.gaps()] == [("ebpf", link) for link in LINKS]
    assert told(readiness) == ["ebpf is asked for and decides on no link: CAP_BPF is missing"]


def test_a_line_that_is_absent_is_told_on_a_node_without_pods() -> None:
    readiness = Readiness(insist=False)
    readiness.absent = {"ebpf": "CAP_BPF is missing"}

    assert readiness.gaps() == []
    assert len(told(readiness)) == 1


def test_links_with_the_same_reason_are_told_together_and_six_are_named() -> None:
    readiness = Readiness(insist=True)
    readiness.failures = lambda: {**dict.fromkeys(LINKS, "no room"), "tun0": "no Ethernet"}

    assert told(readiness) == [
        "ebpf does not decide on tun0: no Ethernet",
        "ebpf does not decide on veth0, veth1, veth2, veth3, veth4, veth5 and 2 more: no room",
    ]
