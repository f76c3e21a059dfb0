"""What the parts of the engine share: the books of pods, leases and answers, and where they tell and count."""

from __future__ import annotations

from dataclasses import dataclass

from dnsguard.core.leases import Leases
from dnsguard.core.pods import PodTable
from dnsguard.engine.cache import AnswerCache
from dnsguard.engine.contracts import Events
from dnsguard.engine.counters import Counters


@dataclass(frozen=True, slots=True)
class Stores:
    """One of each, for one engine."""

    pods: PodTable
    leases: Leases
    cache: AnswerCache
    events: Events
    counters: Counters
