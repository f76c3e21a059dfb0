"""What one process tells the next: how many starts have failed in a row and why, and how it was ended.

Each start that fails has the next one wait longer, up to a few seconds.

systemd starts the daemon again at once, however it ended, and could wait longer each time only from version 254 on. So
the daemon counts its starts in a file of its runtime directory, and waits itself, saying why; one that gets ready ends
the count. Whoever stops or restarts one that waits is not made to wait. Without systemd nothing is counted, nor is a
start that does not get as far as this.

Who is killed cannot tell of it. systemd knows, and the unit leaves its word in the same directory (ExecStopPost=).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from dnsguard.core.model import Seconds
from dnsguard.daemon.whole import read_whole, write_whole
from dnsguard.observe.text import printable

WAITS: Final[tuple[Seconds, ...]] = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Before a start, by how many have failed in a row. The last: what stood in the way may be gone, and the node is to be
whole within 5 s of that."""
ENDING: Final = (signal.SIGTERM, signal.SIGINT)
FILE: Final = "starts"
AGAIN: Final = 100
"""A cause that stays is told of again after so many starts: some five minutes."""

ENDED: Final = "ended"
HOW: Final = {
    "core-dump": "it crashed by SIG{status}",
    "oom-kill": "the kernel killed it for want of memory",
    "signal": "it was killed by SIG{status}",
    "timeout": "it took too long to start, reload or stop, and systemd killed it",
    "watchdog": "it hung, and the watchdog ended it",
}
"""By $SERVICE_RESULT of systemd.exec(5)."""
OOM: Final = "oom_kill "
"""How the kernel's count of processes killed for want of memory begins (memory.events, memory.oom_control)."""


class Starts:
    """The starts in a row that did not get ready. A file that cannot be used means that there was none."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / FILE if folder is not None else None
        self._ended = folder / ENDED if folder is not None else None
        self._before = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Starts:
        """Of the service whose runtime directory systemd has made (RuntimeDirectory=)."""
        folder = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        return cls(Path(folder) if folder else None)

    def begin(self, tell: Callable[[str], None]) -> bool:
        """Wait as long as those before demand, and count this one; False when it was stopped meanwhile."""
        failed, why = self._read()
        self._before = why
        wait = WAITS[min(failed, len(WAITS) - 1)]
        if wait:
            tell(f"failed starts in a row: {failed}; this one waits {wait:g} s; the last said: {why or 'nothing'}")
            if _stopped(wait):
                self.over()
                return False
        self._write(failed + 1)
        return True

    def failed(self, why: str) -> bool:
        """What the next one is to say while it waits. Whether the log should have it: not what it has already."""
        count, _ = self._read()
        self._write(count, why)
        return why != self._before or count % AGAIN == 0

    def ended(self) -> str:
        """How the process before was ended, in words, once; empty when it ended by itself."""
        if self._ended is None:
            return ""
        try:
            told = read_whole(self._ended)
        except (OSError, ValueError):
            return ""
        with contextlib.suppress(OSError):
            self._ended.unlink()
        return _how(told)

    def over(self) -> None:
        """The count is: this one is ready, or was stopped by somebody."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)

    def _read(self) -> tuple[int, str]:
        try:
            count, _, why = read_whole(self._file).partition("\n") if self._file else ("0", "", "")
            return max(0, int(count)), why
        except (OSError, ValueError):
            return 0, ""

    def _write(self, count: int, why: str = "") -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                write_whole(self._file, f"{count}\n{why}")


def _how(told: str) -> str:
    """In words, what the unit has left: a line `result status`, and the kernel's count when somebody lacked memory."""
    result, *counts = told.splitlines() or [""]
    kind, _, status = result.strip().partition(" ")
    if not kind:
        return ""
    how = HOW.get(kind, f"systemd calls it {printable(kind)}").replace("{status}", printable(status))
    short = any(line.startswith(OOM) for line in counts)
    return f"{how}; the kernel has killed a process of this service for want of memory" if short else how


def _stopped(wait: Seconds) -> bool:
    """Whether a signal to end came in that time."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        return signal.sigtimedwait(ENDING, wait) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
