"""The demonstration, step by step."""

from __future__ import annotations

from dnsguard.core.errors import MissingFeatureError


def main(keep: bool) -> int:
    """Show every step and return the exit code; `keep` leaves everything running."""
    raise MissingFeatureError("demo is not built yet" + (" (--keep)" if keep else ""))
