"""`python -m tests.kernels.guest FOLDER SUITE...`: the features of the running kernel and the suites, into FOLDER.

`results.json` is written anew after every step, so that one that hangs takes nothing of the earlier ones with it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.kernels.features import found
from tests.kernels.suites import SUITES, Outcome, apart, run

FEATURES_SECONDS = 90


class Results:
    """As they are read by the host."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.features: dict[str, str] = {}
        self.outcomes: list[Outcome] = []

    def write(self) -> None:
        told = {"features": self.features, "outcomes": [asdict(each) for each in self.outcomes]}
        aside = self._path.with_suffix(".new")
        aside.write_text(json.dumps(told))
        aside.replace(self._path)


def read(path: Path) -> Results:
    """Empty ones where nothing was written."""
    results = Results(path)
    if path.exists():
        told = json.loads(path.read_text())
        results.features = told["features"]
        results.outcomes = [Outcome(**each) for each in told["outcomes"]]
    return results


def features(folder: Path) -> dict[str, str]:
    """Asked in a process of its own, which leaves for a namespace; its complaint is in `features.log`."""
    answer = folder / "features.json"
    apart(lambda: answer.write_text(json.dumps(found())), folder / "features.log", FEATURES_SECONDS)
    return dict(json.loads(answer.read_text())) if answer.exists() else {}


def main(folder: Path, names: list[str]) -> None:
    results = Results(folder / "results.json")
    results.features = features(folder)
    results.write()
    for suite in SUITES:
        if suite.name in names:
            results.outcomes.append(run(suite, folder))
            results.write()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
