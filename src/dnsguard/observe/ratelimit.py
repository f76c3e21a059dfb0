"""A share of log lines for each pod, or whatever else has a key, and an exact count of what did not fit in.

Needs the time with every call. A key that is not in the table has a full bucket; the table holds at most `MAX_KEYS`
recently active keys, and whoever comes after those shares one bucket, so that forged sources cannot grow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from dnsguard.core.model import Seconds

MAX_KEYS: Final = 4096
CROWD: Final = "(others)"
"""The key that all pods beyond `MAX_KEYS` share."""

QUIET: Final = 1.0
"""Seconds without a refused line after which a key's count is reported."""

LeftOut = Mapping[str, int]
"""What did not fit in since the last line that said so: kind -> lines, the kind that came last at the end."""

NOTHING: Final[LeftOut] = {}


class Report(NamedTuple):
    """What was left out about a key that has been quiet since."""

    key: str
    left_out: LeftOut


class _Bucket:
    __slots__ = ("filled", "left_out", "refused", "tokens")

    def __init__(self, tokens: float, now: Seconds) -> None:
        self.tokens = tokens
        self.filled = now
        self.refused = now
        self.left_out: Counter[str] | None = None

    def take_left_out(self) -> LeftOut:
        left_out, self.left_out = self.left_out, None
        return NOTHING if left_out is None else left_out


class LineLimiter:
    """`rate` lines a second for each key, `burst` (at least 1, by default one second's share) at once.

    Every line that is refused is in exactly one `LeftOut`: that of the key's next line, or of a report. With rate 0
    every line is refused and a report comes once a minute.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._mute = rate <= 0
        self._rate = rate if rate > 0 else 1 / 60
        self._burst = max(1.0, rate if burst is None else burst)
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, key: str, kind: str, now: Seconds) -> LeftOut | None:
        """None when the line must be left out (it is counted); otherwise what was left out before it."""
        bucket = self._bucket(key, now)
        if bucket.tokens >= 1.0 and not self._mute:
            bucket.tokens -= 1.0
            return NOTHING if bucket.left_out is None else bucket.take_left_out()
        if bucket.left_out is None:
            bucket.left_out = Counter()
        # At the end: of what swings between two states, this is the one that holds.
        bucket.left_out[kind] = bucket.left_out.pop(kind, 0) + 1
        bucket.refused = now
        return None

    def due(self, now: Seconds) -> list[Report]:
        """Reports for quiet keys whose window allows a line again; each costs that line. Forgets idle keys.

        A key that is not quiet says it in its next line: a report would take that line from it.
        """
        reports = []
        for key, bucket in list(self._buckets.items()):
            self._fill(bucket, now)
            if bucket.left_out is not None and bucket.tokens >= 1.0 and now - bucket.refused >= QUIET:
                bucket.tokens -= 1.0
                reports.append(Report(key, bucket.take_left_out()))
            elif bucket.left_out is None and bucket.tokens >= self._burst:
                del self._buckets[key]
        return reports

    def drain(self) -> list[Report]:
        """All reports at once, whatever the windows say: for the end of the daemon."""
        reports = [Report(key, b.take_left_out()) for key, b in self._buckets.items() if b.left_out is not None]
        self._buckets.clear()
        return reports

    def _bucket(self, key: str, now: Seconds) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None and len(self._buckets) >= MAX_KEYS:
            key = CROWD
            bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._burst, now)
        self._fill(bucket, now)
        return bucket

    def _fill(self, bucket: _Bucket, now: Seconds) -> None:
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled) * self._rate)
        bucket.filled = now
