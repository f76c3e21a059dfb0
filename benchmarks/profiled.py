"""dnsguard under cProfile, without a word of it in dnsguard: `python -m benchmarks.profiled OUT run --config PATH`.

Before Python 3.12 a profile belongs to one thread, so each thread gets its own and OUT holds their sum. Compare shares,
not times: the profiler makes every call dearer.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading

from dnsguard import cli


def _profile_threads(profiles: list[cProfile.Profile]) -> None:
    """Let every thread that starts from now on collect a profile of its own."""
    original = threading.Thread.run

    def run(self: threading.Thread) -> None:
        profiles.append(cProfile.Profile())
        profiles[-1].runcall(original, self)

    threading.Thread.run = run  # type: ignore[method-assign]


def main(out: str, *arguments: str) -> None:
    sys.argv = ["dnsguard", *arguments]
    profiles = [cProfile.Profile()]
    if sys.version_info < (3, 12):
        _profile_threads(profiles)
    try:
        profiles[0].runcall(cli.main)
    finally:
        stats = pstats.Stats(profiles[0])
        for profile in profiles[1:]:
            stats.add(profile)
        stats.dump_stats(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
