"""Builds, starts and stops the daemon."""

from __future__ import annotations

from pathlib import Path

from dnsguard.config.settings import Settings
from dnsguard.core.errors import MissingFeatureError


def run(settings_path: Path) -> int:
    """Run in the foreground until SIGTERM; returns the exit code."""
    raise MissingFeatureError(f"run is not built yet ({settings_path})")


def cleanup(settings: Settings) -> int:
    """Remove every trace from the kernel; returns the exit code."""
    raise MissingFeatureError(f"cleanup is not built yet ({settings.paths.runtime})")
