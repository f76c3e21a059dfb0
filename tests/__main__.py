"""`python -m tests`: every test of the project, as root, with coverage of the daemons that the tests start.

Makes what the tests need and apt does not have (CoreDNS), runs pytest over the whole of tests/, prints the coverage
and how it stands against the thresholds, and ends with the count of tests. Exit code: pytest's own; 1 when the
coverage is enforced and missed; 77 when not root.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

MISSING = 77
TOP = Path(__file__).resolve().parent.parent
THRESHOLDS = {"core and engine": (("dnsguard/core/", "dnsguard/engine/"), 95.0), "the whole": (("dnsguard/",), 90.0)}


def python(*arguments: str) -> int:
    environment = os.environ | {"COVERAGE_FILE": str(TOP / ".coverage")}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=TOP, env=environment, check=False).returncode


def percent(files: dict[str, dict[str, dict[str, int]]], folders: tuple[str, ...], what: str) -> float:
    """Covered share of `what` ("statements" or "branches") in the files under `folders`; 100 when there are none."""
    covered_key = {"statements": "covered_lines", "branches": "covered_branches"}[what]
    sums = [entry["summary"] for path, entry in files.items() if any(folder in path for folder in folders)]
    total = sum(summary[f"num_{what}"] for summary in sums)
    return 100.0 * sum(summary[covered_key] for summary in sums) / total if total else 100.0


def coverage_holds() -> bool:
    """Print the coverage; True when branches and statements reach every threshold."""
    python("coverage", "combine", "--quiet")
    python("coverage", "report")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        python("coverage", "json", "--quiet", "-o", str(report))
        files = json.loads(report.read_text())["files"] if report.exists() else {}
    holds = bool(files)
    for title, (folders, least) in THRESHOLDS.items():
        branches, statements = (percent(files, folders, what) for what in ("branches", "statements"))
        holds = holds and min(branches, statements) >= least
        print(f"{title}: branches {branches:.1f} %, statements {statements:.1f} %, at least {least:.0f} % wanted")
    return holds


def closing_line(report: Path) -> str:
    """`N passed, N failed, N skipped`, from pytest's JUnit file."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    tests, failures, errors, skipped = (int(suite.get(k, "0")) for k in ("tests", "failures", "errors", "skipped"))
    return f"{tests - failures - errors - skipped} passed, {failures + errors} failed, {skipped} skipped"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__)
    parser.add_argument("--coverage", choices=("off", "report", "enforce"), default="report")
    parser.add_argument("pytest", nargs="*", help="passed on to pytest (after --)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("the tests make network namespaces and nftables tables: run them as root", file=sys.stderr)
        return MISSING
    if importlib.util.find_spec("tests.coredns") and python("tests.coredns"):
        return 1
    measured = options.coverage != "off"
    if measured:
        python("coverage", "erase")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        runner = ["coverage", "run", "-m", "pytest"] if measured else ["pytest"]
        status = python(*runner, f"--junitxml={report}", *options.pytest)
        holds = not measured or coverage_holds()
        if report.exists():
            print(closing_line(report))
    if not holds and options.coverage == "enforce":
        print("the coverage is below what is wanted", file=sys.stderr)
    return status or int(options.coverage == "enforce" and not holds)


if __name__ == "__main__":
    sys.exit(main())
