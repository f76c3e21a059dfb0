"""The benchmark says plainly what was reached and what was missed, and compares with the best of the peers."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.aims import aims
from benchmarks.decision import Decision
from benchmarks.path import BOTH, NOTHING, Path, Through
from benchmarks.report import document
from benchmarks.results import Results
from benchmarks.runs import FULL, Figures, Sheet, Workload
from benchmarks.subjects import SUBJECTS, WITHOUT_EBPF
from benchmarks.told import Told


def results(figures: dict[tuple[str, Workload], Figures], told: dict[int, Told] | None = None) -> Results:
    sheets = {key: Sheet([each]) for key, each in figures.items()}
    return Results(sheets, SUBJECTS, FULL, "make bench", "dnsguard", told=told or {})


def line(made: Results, part: str) -> str:
    (found,) = (each for each in aims(made) if part in each)
    return found


def cached(own: float, **peers: float) -> Results:
    """CPU of all cores under `cached`; a peer that is not named is far behind."""
    slow = {subject.name: 1000.0 for subject in SUBJECTS}
    costs = {**slow, **peers, "dnsguard": own}
    return results({(name, Workload.CACHED): Figures(all=cost) for name, cost in costs.items()})


def test_an_aim_is_compared_with_the_best_peer() -> None:
    assert "(unbound, 20.0 us), aim at least 10 times: reached" in line(cached(2, unbound=20, CoreDNS=50), "all cores")
    assert "(unbound, 19.0 us), aim at least 10 times: MISSED" in line(cached(2, unbound=19, CoreDNS=50), "all cores")


def test_dnsguard_without_ebpf_is_no_peer() -> None:
    assert "(unbound, 20.0 us)" in line(cached(2, unbound=20, **{WITHOUT_EBPF: 3}), "all cores")


def test_a_never_seen_name_may_cost_a_tenth_more_with_ebpf_than_without() -> None:
    def fresh(on: float) -> Results:
        both = {"dnsguard": on, WITHOUT_EBPF: 40.0}
        return results({(name, Workload.FRESH): Figures(all=cost) for name, cost in both.items()})

    assert "43.9 us with eBPF, 40.0 without (+9.7 %), aim at most 10 % more: reached" in line(fresh(43.9), "all cores")
    assert line(fresh(44.1), "all cores").endswith("MISSED")


def test_more_names_may_not_make_an_answer_dearer() -> None:
    def told(most: float) -> Results:
        costs = {1: 2.0, 100: 2.1, 10_000: most}
        return results({}, {names: Told(1e5, cost, 8, 20, 500, 1) for names, cost in costs.items()})

    assert line(told(2.25), "by names").endswith("reached")
    assert line(told(2.4), "by names").endswith("MISSED")


def test_throughput_is_compared_with_that_of_a_node_without_anything() -> None:
    through = {NOTHING: Through(10e9, 1e9, 20_000), BOTH: Through(9.8e9, 0.96e9, 19_000)}
    made = replace(results({}), path=Path(through, {"from_pod": 400.0}, {10: Decision(300, 800, 140, 130)}))

    assert line(made, "TCP throughput").endswith("98.0 % of that with nothing on the node, aim at least 97 %: reached")
    assert line(made, "UDP throughput").endswith("96.0 % of that with nothing on the node, aim at least 97 %: MISSED")


def test_what_was_not_measured_is_said_in_the_document() -> None:
    text = document(replace(results({}), scale="not ready with 1,000 pods"))

    assert "## A full node\n\n- Not measured: not ready with 1,000 pods" in text


def test_figures_of_a_busy_machine_are_marked() -> None:
    assert "THE MACHINE WAS NOT QUIET" in document(replace(results({}), load_before=1.5))
    assert "NOT QUIET" not in document(replace(results({}), load_before=0.4))
