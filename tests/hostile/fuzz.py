"""A mutation fuzzer for the readers of outside bytes: `python -m tests.hostile.fuzz --reader answer --seconds 60`.

Takes inputs from corpus/<reader>/, changes and joins them, and gives them to the reader. An input that reaches a line
no input reached before (in dnsguard, told by the interpreter's trace while learning) joins the pool; one that raises
or is slow is saved into the corpus as found-<hash>, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.hostile.readers import READERS, Reader

CORPUS = Path(__file__).parent / "corpus"
INTERESTING = [0, 1, 4, 5, 12, 16, 28, 41, 46, 63, 64, 65, 127, 128, 191, 192, 255]
_LEARN_EVERY = 16
_LARGEST_POOL = 2000


def seeds(reader: str) -> list[bytes]:
    """The stored corpus of a reader, in a stable order."""
    return [path.read_bytes() for path in sorted((CORPUS / reader).glob("*.bin"))]


def mutate(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """One input, changed in one to six places."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out)) if out else 0
        length = rng.choice((1, 1, 2, 4, 12, rng.randint(1, 64)))
        rng.choice(_MUTATIONS)(out, at, length, pool, rng)
    return bytes(out)


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
    value = rng.choice((0, 1, 2, 0xC000 | rng.randrange(len(out) + 1), 0xFFFF, rng.randrange(1 << 16)))
    out[at : at + 2] = value.to_bytes(2, "big")


def _cut(out: bytearray, at: int, _length: int, _pool: list[bytes], _rng: random.Random) -> None:
    del out[at:]


_Mutation = Callable[[bytearray, int, int, list[bytes], random.Random], None]
_MUTATIONS: list[_Mutation] = [_set, _set, _flip, _delete, _insert, _repeat, _splice, _number, _number, _cut]


def reached(reader: Reader, data: bytes) -> set[tuple[str, int]]:
    """The lines of dnsguard that an input reaches."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "/dnsguard/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        reader.run(data)
    finally:
        sys.settrace(None)
    return lines


def finding(reader: Reader, data: bytes, patience: float = 1) -> str | None:
    """Why this input is a finding, or None. A slow one is measured again: the machine may have been busy.

    `patience` times the reader's limit is slow: more than 1 where the interpreter is being traced.
    """
    limit = reader.limit * patience
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        try:
            reader.run(data)
        except BaseException:
            return traceback.format_exc()
        fastest = min(fastest, time.perf_counter() - start)
        if fastest <= limit:
            return None
    return f"slow: {fastest:.3f} s for {len(data)} octets, more than {limit} s"


def save(reader: str, data: bytes) -> Path:
    """Store an input in the corpus, so that it is replayed from now on."""
    path = CORPUS / reader / f"found-{hashlib.sha256(data).hexdigest()[:16]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def fuzz(name: str, seconds: float, seed: int) -> int:
    """Fuzz one reader; the number of findings, each saved and printed. A second finding on the same line is skipped."""
    reader, rng = READERS[name], random.Random(seed)
    pool = seeds(name) or [b""]
    known: set[tuple[str, int]] = set()
    for data in pool:
        known |= reached(reader, data)
    found: set[str] = set()
    runs, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(rng.choice(pool), pool, rng)[: reader.largest]
        runs += 1
        if reason := finding(reader, data):
            where = "\n".join(line for line in reason.splitlines() if "line " in line) or "slow"
            if where not in found:
                found.add(where)
                print(f"{save(name, data)}\n{reason}")
        elif runs % _LEARN_EVERY == 0 and len(pool) < _LARGEST_POOL and (new := reached(reader, data)) - known:
            known |= new
            pool.append(data)
    print(f"{name}: {runs} inputs, pool {len(pool)}, {len(known)} lines reached, {len(found)} findings (seed {seed})")
    return len(found)


def main() -> int:
    """The command line: exit code 1 when anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("--reader", choices=[*READERS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=60, help="for each reader")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run; by default another each time")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    chosen = list(READERS) if given.reader == "all" else [given.reader]
    return 1 if sum(fuzz(name, given.seconds, seed) for name in chosen) else 0


if __name__ == "__main__":
    raise SystemExit(main())
