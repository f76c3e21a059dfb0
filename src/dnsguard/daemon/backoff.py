"""Back-off between starts that fail: each in a row has the next one wait longer, up to a few seconds.

systemd starts the daemon again at once, however it ended, and could wait longer each time only from version 254 on. So
the daemon counts its starts in a file of its runtime directory, and waits itself, saying why; one that gets ready ends
the count. Whoever stops or restarts one that waits is not made to wait. Without systemd nothing is counted, nor is a
start that does not get as far as this.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from dnsguard.core.model import Seconds
from dnsguard.daemon.whole import read_whole, write_whole

WAITS: Final[tuple[Seconds, ...]] = (0.0, 0.5, 1.0, 2.0, 3.0)
"""Before a start, by how many have failed in a row. The last: what stood in the way may be gone, and the node is to be
whole within 5 s of that."""
ENDING: Final = (signal.SIGTERM, signal.SIGINT)
FILE: Final = "starts"


class Starts:
    """The starts in a row that did not get ready. A file that cannot be used means that there was none."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / FILE if folder is not None else None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Starts:
        """Of the service whose runtime directory systemd has made (RuntimeDirectory=)."""
        folder = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        return cls(Path(folder) if folder else None)

    def begin(self, tell: Callable[[str], None]) -> bool:
        """Wait as long as those before demand, and count this one; False when it was stopped meanwhile."""
        failed, why = self._read()
        wait = WAITS[min(failed, len(WAITS) - 1)]
        if wait:
            tell(f"failed starts in a row: {failed}; this one waits {wait:g} s; the last said: {why or 'nothing'}")
            if _stopped(wait):
                self.over()
                return False
        self._write(failed + 1)
        return True

    def failed(self, why: str) -> None:
        """What the next one is to say while it waits."""
        self._write(self._read()[0], why)

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


def _stopped(wait: Seconds) -> bool:
    """Whether a signal to end came in that time."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        return signal.sigtimedwait(ENDING, wait) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
