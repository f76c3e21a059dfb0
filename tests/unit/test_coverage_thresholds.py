"""What `python -m tests` says of coverage and counts is what the reports hold."""

from __future__ import annotations

from pathlib import Path

from tests.__main__ import closing_line, percent

FILES = {
    "src/dnsguard/core/a.py": {
        "summary": {"num_branches": 10, "covered_branches": 9, "num_statements": 1, "covered_lines": 1}
    },
    "src/dnsguard/core/b.py": {
        "summary": {"num_branches": 30, "covered_branches": 27, "num_statements": 1, "covered_lines": 0}
    },
    "src/dnsguard/cli/c.py": {
        "summary": {"num_branches": 60, "covered_branches": 0, "num_statements": 0, "covered_lines": 0}
    },
}


def test_the_share_is_of_all_branches_together_and_of_the_named_folders_only() -> None:
    assert percent(FILES, ("dnsguard/core/", "dnsguard/engine/"), "branches") == 90.0
    assert percent(FILES, ("dnsguard/core/",), "statements") == 50.0
    assert percent(FILES, ("dnsguard/",), "branches") == 36.0


def test_folders_without_files_hold_back_nothing() -> None:
    assert percent(FILES, ("dnsguard/engine/",), "branches") == 100.0


def test_the_closing_line_counts_errors_as_failures(tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text('<testsuites><testsuite tests="10" failures="1" errors="2" skipped="3"/></testsuites>')

    assert closing_line(report) == "4 passed, 3 failed, 3 skipped"
