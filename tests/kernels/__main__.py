"""`python -m tests.kernels`: the suites that stand on the kernel, on Debian's older kernels and on this machine's.

    --kernel 5.10     this series alone; may be given again. `native`: this machine's
    --suite load      this suite alone; may be given again

One line for each kernel and suite, then the log of what failed; the table in docs/kernels.md is written anew. Needs
root, and the network where the newest kernels are not yet under `.cache/kernels`. Exit codes: 0 everything passed;
1 something failed, did not end, or nothing ran; 77 not root.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import sys
import time
from pathlib import Path

from tests.kernels import guest, page, virtual
from tests.kernels.archive import SERIES, ArchiveError, Kernel, kernels
from tests.kernels.suites import SUITES

MISSING = 77
NATIVE = "native"
LAST_LINES = 150


def on_kernel(kernel: Kernel, names: list[str]) -> bool:
    """The suites in a virtual machine; whether all is well. Prints what it found."""
    folder = virtual.own_folder(kernel.series)
    started = time.monotonic()
    seconds = guest.FEATURES_SECONDS + sum(suite.seconds + 20 for suite in SUITES if suite.name in names)
    ended = virtual.boot(kernel, folder, ["tests.kernels.guest", str(folder), *names], seconds)
    good = report(kernel.series, kernel.release, folder, names)
    print(f"{kernel.release}: {virtual.elapsed(started)} with the start of the machine", flush=True)
    if not ended or not good:
        show(folder / "console.log")
    if not ended:
        print(f"{kernel.release}: killed, it did not end within {virtual.BOOT_SECONDS + seconds} s", flush=True)
    return ended and good


def on_this_machine(names: list[str]) -> bool:
    folder = virtual.own_folder(NATIVE)
    guest.main(folder, names)
    release = platform.release()
    return report(".".join(re.findall(r"\d+", release)[:2]), release, folder, names)


def report(series: str, release: str, folder: Path, names: list[str]) -> bool:
    """Print what a kernel's folder holds, and put it on the page; whether every suite is there and passed."""
    results = guest.read(folder / "results.json")
    for outcome in results.outcomes:
        print(f"{release:<24} {outcome}", flush=True)
    for outcome in results.outcomes:
        if not outcome.good:
            show(folder / f"{outcome.suite}.log")
    if results.features:
        page.write({series: {"tested": release} | results.features})
    else:
        print(f"{release}: its features could not be found out", flush=True)
        show(folder / "features.log")
    missing = set(names) - {outcome.suite for outcome in results.outcomes}
    if missing:
        print(f"{release}: never ran: {', '.join(sorted(missing))}", flush=True)
    return bool(results.features) and not missing and all(outcome.good for outcome in results.outcomes)


def show(log: Path) -> None:
    """The end of a log, where there is one."""
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if log.exists() else ["(not written)"]
    print(f"---- {log.name}", *lines, "----", sep="\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [suite.name for suite in SUITES]
    parser.add_argument("--kernel", action="append", choices=(*SERIES, NATIVE))
    parser.add_argument("--suite", action="append", choices=every)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("the suites make network namespaces and load programs into the kernel: run them as root", file=sys.stderr)
        return MISSING
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that no virtual machine is left
    chosen, names = options.kernel or (*SERIES, NATIVE), options.suite or every
    started = time.monotonic()
    virtual.sweep()
    try:
        found = kernels([each for each in SERIES if each in chosen])
    except ArchiveError as error:
        print(error, file=sys.stderr)
        return 1
    # this machine's first: what Python compiles there need not be compiled again under emulation
    good = [on_this_machine(names)] if NATIVE in chosen else []
    good += [on_kernel(kernel, names) for kernel in found]
    print(f"{sum(good)} of {len(good)} kernels passed in {virtual.elapsed(started)}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
