"""A mutation fuzzer for the readers of outside bytes: `python -m tests.hostile --reader answer --seconds 60`.

Takes inputs from corpus/<reader>/, changes and joins them, and gives them to the reader. An input that goes from
one line to another as no input before it (in dnsguard, told by the interpreter's trace while learning) joins the pool;
one that raises, is slow or does not end is saved into the corpus as found-<hash>, and the exit code is 1. With
`--keep` inputs that reached new lines are made as small as they can be and saved as new-<hash>.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tests.hostile.readers import READERS, Reader

CORPUS = Path(__file__).parent / "corpus"
TOP = Path(__file__).resolve().parents[2]
INTERESTING = [0, 1, 4, 5, 12, 16, 28, 41, 46, 63, 64, 65, 127, 128, 191, 192, 255]
_LEARN_EVERY = 8
_LARGEST_POOL = 2000
ENDLESS = 30.0
"""Seconds of the processor after which an input counts as one that never ends."""
_Lines = set[tuple[str, int]]
_Steps = set[tuple[str, int, int]]


def stored(reader: str) -> list[Path]:
    """The stored corpus of a reader, and the files of the project that are inputs for it, in a stable order."""
    return [
        *sorted((CORPUS / reader).glob("*.bin")),
        *(path for pattern in READERS[reader].files for path in sorted(TOP.glob(pattern))),
    ]


def mutate(reader: Reader, data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """One input, changed in one to six places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out)) if out else 0
        if reader.separator and rng.random() < 0.4:
            out = bytearray(reader.separator.join(move_parts(out.split(reader.separator), reader, pool, rng)))
            continue
        if reader.words and rng.random() < 0.15:
            out[at : at + rng.choice((0, 0, 4))] = rng.choice(reader.words)
            continue
        length = rng.choice((1, 1, 2, 4, 12, rng.randint(1, 64)))
        rng.choice(_MUTATIONS)(out, at, length, pool, rng)
    return bytes(out)


def move_parts(
    parts: list[bytearray], reader: Reader, pool: list[bytes], rng: random.Random
) -> list[bytearray] | list[bytes]:
    """Parts of an input, with one left out, repeated, moved, or taken from another input."""
    at, to = rng.randrange(len(parts)), rng.randrange(len(parts) + 1)
    what = rng.randrange(5)
    if what == 0:
        return parts[:at] + parts[at + 1 :]
    if what == 1:
        return parts[:to] + [parts[at]] * rng.choice((1, 1, 2, 30)) + parts[to:]
    if what == 2:
        return parts[:at] + parts[at + 1 :][:to] + [parts[at]] + parts[at + 1 :][to:]
    others = rng.choice(pool).split(reader.separator)
    start = rng.randrange(len(others))
    taken = [bytearray(other) for other in others[start : start + rng.choice((1, 1, 2, 8))]]
    return parts[:to] + taken + parts[to + (what == 3) :]


def _set(out: bytearray, at: int, _length: int, _pool: list[bytes], rng: random.Random) -> None:
    out[at : at + 1] = bytes((rng.choice((rng.randrange(256), rng.choice(INTERESTING))),))


def _flip(out: bytearray, at: int, _length: int, _pool: list[bytes], rng: random.Random) -> None:
    out[at : at + 1] = bytes(octet ^ 1 << rng.randrange(8) for octet in out[at : at + 1])


def _delete(out: bytearray, at: int, length: int, _pool: list[bytes], _rng: random.Random) -> None:
    del out[at : at + length]


def _insert(out: bytearray, at: int, length: int, _pool: list[bytes], rng: random.Random) -> None:
    out[at:at] = rng.randbytes(length)


def _repeat(out: bytearray, at: int, length: int, _pool: list[bytes], rng: random.Random) -> None:
    out[at:at] = out[at : at + length] * rng.choice((1, 2, 20, 400))


def _splice(out: bytearray, at: int, length: int, pool: list[bytes], rng: random.Random) -> None:
    other = rng.choice(pool)
    start = rng.randrange(len(other) + 1)
    out[at : at + length] = other[start : start + rng.choice((length, 64, len(other)))]


def _number(out: bytearray, at: int, _length: int, _pool: list[bytes], rng: random.Random) -> None:
    value = rng.choice((0, 1, 2, 0xC000 | rng.randrange(len(out) + 1) & 0x3FFF, 0xFFFF, rng.randrange(1 << 16)))
    out[at : at + 2] = value.to_bytes(2, "big")


def _cut(out: bytearray, at: int, _length: int, _pool: list[bytes], _rng: random.Random) -> None:
    del out[at:]


_Mutation = Callable[[bytearray, int, int, list[bytes], random.Random], None]
_MUTATIONS: list[_Mutation] = [_set, _set, _flip, _delete, _insert, _repeat, _splice, _number, _number, _cut]


def steps(reader: Reader, data: bytes) -> _Steps:
    """The steps that an input makes dnsguard take: from which line to which, by file; 0 is a function's beginning."""
    taken: _Steps = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if "/dnsguard/" not in file:
            return None
        at = 0

        def line(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal at
            if event == "line":
                taken.add((file, at, frame.f_lineno))
                at = frame.f_lineno
            return line

        return line

    before = sys.gettrace()  # whoever measures the coverage
    sys.settrace(trace)
    try:
        reader.run(data)
    finally:
        sys.settrace(before)
    return taken


def reached(reader: Reader, data: bytes) -> _Lines:
    """The lines of dnsguard that an input reaches."""
    return {(file, to) for file, _, to in steps(reader, data)}


@contextmanager
def ending() -> Iterator[None]:
    """Raises TimeoutError inside what takes the processor for too long."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end after {ENDLESS:.0f} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, ENDLESS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def finding(reader: Reader, data: bytes, patience: float = 1) -> str | None:
    """Why this input is a finding, or None. A slow one is measured again: the machine may have been busy.

    `patience` times the reader's limit is slow: more than 1 where the interpreter is being traced.
    """
    limit = reader.limit * patience
    fastest = float("inf")
    for _ in range(3):
        start = time.process_time()
        try:
            with ending():
                reader.run(data)
        except Exception:
            return traceback.format_exc()
        fastest = min(fastest, time.process_time() - start)
        if fastest <= limit:
            return None
    return f"slow: {fastest:.3f} s for {len(data)} octets, more than {limit} s"


def save(reader: str, data: bytes, kind: str = "found") -> Path:
    """Store an input in the corpus, so that it is replayed from now on."""
    path = CORPUS / reader / f"{kind}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def smallest(reader: Reader, data: bytes, holds: Callable[[bytes], bool], tries: int = 200) -> bytes:
    """A smaller input for which `holds` is as true as for `data`: halves, quarters ... of its parts are left out, or of
    its octets where it has no parts."""
    items = data.split(reader.separator) if reader.separator else [bytes((octet,)) for octet in data]
    return reader.separator.join(_fewest(items, lambda left: holds(reader.separator.join(left)), tries))


def _fewest(items: list[bytes], holds: Callable[[list[bytes]], bool], tries: int) -> list[bytes]:
    size = len(items) // 2
    while size and tries:
        at = 0
        while at < len(items) and tries:
            tries -= 1
            left = items[:at] + items[at + size :]
            if holds(left):
                items = left
            else:
                at += size
        size //= 2
    return items


class Hunt:
    """One reader, the inputs that are worth changing, and what came of it."""

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._reader, self._rng = name, READERS[name], random.Random(seed)
        self.pool = [b""]
        self.known: _Steps = set()
        self.found: set[str] = set()
        self.runs = 0
        self._learnt: list[bytes] = []
        for path in stored(name):
            data = path.read_bytes()
            if reason := finding(self._reader, data):
                self._tell(path, reason)
            else:
                self.pool.append(data)
                self.known |= steps(self._reader, data)
        self.at_first = frozenset(self.known)

    def once(self) -> None:
        """Change one input and read it."""
        reader = self._reader
        data = mutate(reader, self._rng.choice(self.pool), self.pool, self._rng)[: reader.largest]
        self.runs += 1
        if reason := finding(reader, data):
            if _place(reason) not in self.found:
                self._tell(save(self._name, self._smaller(data, reason)), reason)
        elif self.runs % _LEARN_EVERY == 0 and len(self.pool) < _LARGEST_POOL:
            self._learn(data)

    def keep(self) -> int:
        """Store the few inputs that reach all the new lines, each as small as it can be; how many these are."""
        known, saved = {(file, to) for file, _, to in self.at_first}, 0
        for data in sorted(self._learnt, key=len):
            if new := reached(self._reader, data) - known:
                small = smallest(self._reader, data, partial(_reaches, self._reader, new))
                known |= reached(self._reader, small)
                save(self._name, small, "new")
                saved += 1
        return saved

    def _learn(self, data: bytes) -> None:
        if (taken := steps(self._reader, data)) - self.known:
            self.known |= taken
            self.pool.append(data)
            self._learnt.append(data)

    def _tell(self, path: Path, reason: str) -> None:
        self.found.add(_place(reason))
        print(f"{path}\n{reason}", flush=True)

    def _smaller(self, data: bytes, reason: str) -> bytes:
        """A smaller input with the same finding. What takes long is left as it is."""
        if _place(reason) == _TOO_LONG:
            return data
        return smallest(self._reader, data, lambda less: _place(finding(self._reader, less) or "") == _place(reason))


_TOO_LONG = "too long"


def _place(reason: str) -> str:
    """What tells findings apart: the lines that a traceback names."""
    if reason.startswith("slow") or "TimeoutError: no end" in reason:
        return _TOO_LONG
    return "\n".join(line for line in reason.splitlines() if "line " in line)


def _reaches(reader: Reader, lines: _Lines, data: bytes) -> bool:
    try:
        return lines <= reached(reader, data)
    except Exception:  # a finding, and perhaps another one than this input's
        return False


def fuzz(name: str, seconds: float, seed: int, keep: bool = False) -> int:
    """Fuzz one reader; the number of findings, each saved and printed. A second finding on the same line is skipped."""
    hunt = Hunt(name, seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hunt.once()
    saved = hunt.keep() if keep else 0
    new = len(hunt.known - hunt.at_first)
    print(
        f"{name}: {hunt.runs} inputs in {seconds:.0f} s, {len(hunt.found)} findings; pool {len(hunt.pool)}, "
        f"{len(hunt.known)} steps from line to line, {new} of them new, {saved} inputs saved (seed {seed})",
        flush=True,
    )
    return len(hunt.found)


def main() -> int:
    """The command line: exit code 1 when anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--reader", choices=[*READERS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=60, help="for each reader")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; by default another each time")
    parser.add_argument("--keep", action="store_true", help="store the inputs that reach new lines")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    chosen = list(READERS) if given.reader == "all" else [given.reader]
    return 1 if sum(fuzz(name, given.seconds, seed, given.keep) for name in chosen) else 0


if __name__ == "__main__":
    raise SystemExit(main())
