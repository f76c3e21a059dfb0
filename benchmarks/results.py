"""All figures of a run, and how they are compared."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.dnsguard_alone import Alone
from benchmarks.path import Path
from benchmarks.runs import Pace, Sheet, Workload
from benchmarks.scale import Scale
from benchmarks.subjects import Subject
from benchmarks.told import Told

UPSTREAM_ALONE = "upstream alone"


@dataclass(frozen=True, slots=True)
class Results:
    """Of a whole run: sheets by (server, workload), UPSTREAM_ALONE being a server too."""

    sheets: dict[tuple[str, Workload], Sheet]
    subjects: tuple[Subject, ...]
    pace: Pace
    command: str
    first: str
    """The server that the others are compared with."""
    alone: Alone | None = None
    told: dict[int, Told] = field(default_factory=dict)
    path: Path | None = None
    scale: Scale | str | None = None
    """Or why there is none."""
    load_before: float = 0.0
    """The machine's load average when the run began: figures of a busy machine are worth little."""

    @property
    def peers(self) -> list[str]:
        return [subject.name for subject in self.subjects if subject.program != "dnsguard"]

    def value(self, server: str, workload: Workload, what: str) -> float:
        sheet = self.sheets.get((server, workload))
        return sheet.median(what) if sheet else 0.0

    def added(self, server: str, workload: Workload, what: str) -> float:
        """Latency over that of the upstream alone; nothing is taken off where an answer needs no upstream."""
        asks = workload in (Workload.FRESH, Workload.CHAIN)
        direct = self.value(UPSTREAM_ALONE, Workload.FRESH, what) if asks else 0.0
        return max(0.0, self.value(server, workload, what) - direct)
