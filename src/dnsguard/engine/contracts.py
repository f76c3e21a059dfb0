"""What the engine needs from the rooms around it, each as a Protocol with a shipped double.

All methods are called in the event loop's thread and none of them blocks. Results come back in the same thread,
through the functions that a room was given when it was built.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from dnsguard.core.answers import Answer
from dnsguard.core.lease import Element, Held, Write
from dnsguard.core.model import Address, Flow, LinkIndex, Name, Pair, Program, Seconds
from dnsguard.core.wire import ExtendedError, Question

__all__ = [
    "NOTHING",
    "Acknowledge",
    "Attempt",
    "Client",
    "Desired",
    "Element",
    "Enforcer",
    "EventKind",
    "Events",
    "Flows",
    "Held",
    "KernelAnswers",
    "NoAnswers",
    "NoReminder",
    "NoWitness",
    "Owed",
    "Reminder",
    "Ticket",
    "Told",
    "Upstream",
    "Witness",
    "Write",
]

Ticket = int
"""A number given to each batch of lease writes, in the order they are handed to the enforcer."""


@dataclass(frozen=True, slots=True)
class Desired:
    """All that the kernel should hold besides leases: programs, which pair runs which, and who is not governed."""

    programs: tuple[Program, ...] = ()
    pairs: Mapping[Pair, str] = field(default_factory=dict)
    excluded: frozenset[Pair] = frozenset()


Acknowledge = Callable[[Ticket, Mapping[Ticket, str]], None]
"""`acknowledge(upto, refused)`: every ticket up to `upto` is settled; those in `refused` failed, with the reason."""


class Enforcer(Protocol):
    """Makes leases real. Work is done in the order of the calls; each call queues it before it returns."""

    def arm(self, ticket: Ticket, writes: Sequence[Write]) -> None:
        """Make or refresh these elements, to live exactly `timeout_ms` from now. Settled by `Acknowledge`.

        A write that is refused fails its own ticket only.
        """

    def apply(self, desired: Desired, add: Sequence[Write] = (), remove: Collection[Element] = ()) -> Awaitable[None]:
        """Go over to `desired` without losing a packet: sets and `add` first, then programs and pairs in one
        transaction, then `remove` and whatever is unused. Raises KernelError with everything as it was before."""

    def cut(self, flows: Collection[Flow]) -> Awaitable[None]:
        """Drop these flows' packets, both directions, until `uncut` or ten minutes of silence."""

    def uncut(self, flows: Collection[Flow]) -> Awaitable[None]:
        """Let these flows' packets be decided again. Unknown flows are ignored."""

    def audit(self, on: bool) -> Awaitable[None]:
        """Let through, from here on, what no rule accepts, but for forged sources; or drop it again. Flows that were
        open before go on, either way. Raises KernelError with everything as it was before."""

    def read(self) -> Awaitable[Sequence[Held]]:
        """Every lease element that the kernel holds and that has time left."""


class Flows(Protocol):
    """The node's connection tracking."""

    def begun_by(self, addresses: Collection[Address]) -> Awaitable[Sequence[Flow]]:
        """The open flows whose first packet came from one of `addresses`."""

    def delete(self, flows: Iterable[Flow]) -> Awaitable[None]:
        """Forget these flows. One that is already gone is ignored."""

    def forget(self, addresses: Collection[Address]) -> Awaitable[None]:
        """Forget every flow to or from these addresses: whoever has them next inherits none."""


Told = tuple[int, Name, int]
"""Whom the kernel answers, and what: a source (the kernel's number for a pod's link and address), a name, a type."""


class KernelAnswers(Protocol):
    """Answers that the kernel gives a pod without asking the daemon, until they end.

    A source has a share of them; when it is full, its own oldest goes. What the kernel does not take is answered here
    as before: nothing depends on it.
    """

    def put(self, source: int, question: Question, answer: Answer, *, ttl_ends: Seconds, until: Seconds) -> bool:
        """Tell `source` this, exactly as `reply` would with what is left of the TTL, before `until`. What is told until
        then already may stay as it is.

        False: the kernel has no place for it, or no form (too long, DO, CD).
        """

    def put_denial(
        self, source: int, question: Question, *, rcode: int, ede: ExtendedError | None, until: Seconds
    ) -> bool:
        """The same for a denial: with a SOA but for REFUSED."""

    def forget(self, source: int) -> None:
        """When it returns, nothing that `source` was told is told again."""

    def adopt(self, sources: Collection[int]) -> None:
        """Take over what an earlier process put for `sources`, and forget the rest. Before anything else, once."""

    def sweep(self, now: Seconds) -> bool:
        """Take out some of what has ended. True: there is more."""

    def hot(self, now: Seconds, within: Seconds) -> list[Told]:
        """What was asked for since it was put and ends `within` so many seconds; each is looked at once."""


class NoAnswers:
    """The KernelAnswers of a node without them."""

    def put(self, source: int, question: Question, answer: Answer, *, ttl_ends: Seconds, until: Seconds) -> bool:
        return False

    def put_denial(
        self, source: int, question: Question, *, rcode: int, ede: ExtendedError | None, until: Seconds
    ) -> bool:
        return False

    def forget(self, source: int) -> None:
        pass

    def adopt(self, sources: Collection[int]) -> None:
        pass

    def sweep(self, now: Seconds) -> bool:
        return False

    def hot(self, now: Seconds, within: Seconds) -> list[Told]:
        return []


class Witness(Protocol):
    """Who keeps what pods asked for, for `learn`. Called for every question: it must cost next to nothing.

    `pod` is its name; `rule` the policies that allow the name, empty when none does.
    """

    def came(self, pod: str, link: LinkIndex, now: Seconds) -> None:
        """A pod came by this link that has no name but its address."""

    def answered(self, pod: str, name: Name, answer: Answer, rule: str, now: Seconds) -> None:
        """The pod was told this."""

    def unanswered(self, pod: str, name: Name, rule: str, now: Seconds) -> None:
        """The pod asked, and was told nothing of the name: it was denied, or no upstream answered."""

    def names(self, pod: str, address: Address) -> Collection[Name]:
        """The names of which the pod was told this address, as far as that is known."""


class NoWitness:
    """The Witness of an engine whose questions nobody keeps."""

    def came(self, pod: str, link: LinkIndex, now: Seconds) -> None:
        pass

    def answered(self, pod: str, name: Name, answer: Answer, rule: str, now: Seconds) -> None:
        pass

    def unanswered(self, pod: str, name: Name, rule: str, now: Seconds) -> None:
        pass

    def names(self, pod: str, address: Address) -> Collection[Name]:
        return ()


class Client(Protocol):
    """Who asked: the way back to a pod. `identity` tells a retry (same socket, same ID) from a new question."""

    @property
    def stream(self) -> bool:
        """True over TCP: replies are never truncated."""

    @property
    def identity(self) -> object:
        """Hashable; equal for packets from the same socket of the same pod."""

    def reply(self, packet: bytes) -> None:
        """Send a DNS message back. Never raises; a client that has gone is ignored."""


class Attempt(Protocol):
    """One query to one upstream, as the transport needs it. The transport may hang its own state on `handle`."""

    server: int
    """Index into the configured upstreams."""
    stream: bool
    """Ask over TCP."""
    query: bytes
    """The DNS message after its two octets of ID: the transport chooses the ID."""
    section: bytes
    """The question section as sent; an answer must carry it (letters may differ in case)."""
    handle: object


class Upstream(Protocol):
    """Sends attempts. Each ends in exactly one call of `answered` or `failed`, unless abandoned before.

    `answered(attempt, packet)` has a matching ID, question and QR=1; everything else was discarded and counted.
    `failed(attempt, reason)`: refused port, closed connection, twenty discarded packets (`garbage`).
    """

    def ask(self, attempt: Attempt) -> None:
        """Send it. May call `failed` before it returns."""

    def abandon(self, attempt: Attempt, *, timed_out: bool) -> None:
        """Forget it. After a time-out its socket is not used again (conntrack may pin a dead backend)."""


@dataclass(frozen=True, slots=True)
class Owed:
    """What changes have yet to do about open flows: those of these pods' addresses are to be judged, those of addresses
    that a pod has lost to be forgotten."""

    judge: frozenset[Address] = frozenset()
    forget: frozenset[Address] = frozenset()


NOTHING = Owed()


class Reminder(Protocol):
    """Outlives the process: what is owed when it is killed, the next one finds there."""

    def keep(self, owed: Owed) -> None:
        """This is owed from now on, and nothing else. Never raises; called before the kernel goes over, and when
        something is done."""


class NoReminder:
    """The Reminder of an engine that no other process follows."""

    def keep(self, owed: Owed) -> None:
        pass


class EventKind(StrEnum):
    """Everything dnsguard tells an operator. The value is the event's name in logs; `observe` adds level and text."""

    STARTED = "started"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    START_FAILED = "start_failed"
    ENDED_BADLY = "ended_badly"
    CLOCK_STEPPED = "clock_stepped"
    FEATURE_LEFT_OUT = "feature_left_out"
    EBPF_NOT_USED = "ebpf_not_used"
    POLICY_LOADED = "policy_loaded"
    POLICY_REJECTED = "policy_rejected"
    POLICY_NOT_TAKEN = "policy_not_taken"
    POLICY_WARNING = "policy_warning"
    RESTART_NEEDED = "restart_needed"
    MODE_CHANGED = "mode_changed"
    POD_CAME = "pod_came"
    POD_CHANGED = "pod_changed"
    POD_WENT = "pod_went"
    POD_CONFLICT = "pod_conflict"
    NODE_PROBLEM = "node_problem"
    SYSCTL_UNUSABLE = "sysctl_unusable"
    BPFFS_UNMOUNTED = "bpffs_unmounted"
    SOCKET_NOT_USED = "socket_not_used"
    QUERY_ALLOWED = "query_allowed"
    QUERY_DENIED = "query_denied"
    QUERY_AUDITED = "query_audited"
    QUERY_REFUSED = "query_refused"
    QUERY_LIMITED = "query_limited"
    QUERY_FAILED = "query_failed"
    QUERY_UNKNOWN_SOURCE = "query_unknown_source"
    FORWARDING_LOOP = "forwarding_loop"
    ANSWER_WITHHELD = "answer_withheld"
    ANSWER_AUDITED = "answer_audited"
    ANSWER_STALE = "answer_stale"
    LEASE_OPENED = "lease_opened"
    LEASE_ENDED = "lease_ended"
    LEASE_REFUSED = "lease_refused"
    LEASES_PURGED = "leases_purged"
    FLOW_DENIED = "flow_denied"
    FLOW_AUDITED = "flow_audited"
    FLOWS_CUT = "flows_cut"
    UPSTREAM_DOWN = "upstream_down"
    UPSTREAM_FAILING = "upstream_failing"
    UPSTREAM_UP = "upstream_up"
    SEEN_FILE_FAILED = "seen_file_failed"
    KERNEL_STATE_REPAIRED = "kernel_state_repaired"
    KERNEL_STATE_DAMAGED = "kernel_state_damaged"
    LINK_WITHOUT_EBPF = "link_without_ebpf"
    CONNTRACK_FULL = "conntrack_full"
    CONNTRACK_HAS_ROOM = "conntrack_has_room"
    CHANGES_MISSED = "changes_missed"
    STATE_FILE_SET_ASIDE = "state_file_set_aside"
    STATE_FILE_UNWRITABLE = "state_file_unwritable"
    STATE_FILE_WRITTEN = "state_file_written"
    DESCRIPTORS_SHORT = "descriptors_short"
    DESCRIPTORS_FREE = "descriptors_free"
    RUNTIME_RESTORED = "runtime_restored"
    RUNTIME_LOST = "runtime_lost"
    EVENTS_SUPPRESSED = "events_suppressed"
    LOG_LINES_DROPPED = "log_lines_dropped"
    WATCHER_CUT_OFF = "watcher_cut_off"
    INTERNAL_ERROR = "internal_error"


class Events(Protocol):
    """Where events go. Never blocks, never raises; rate-limited with a count of what was left out."""

    all_queries: bool
    """Tell of allowed queries too; ask before building their fields."""
    all_leases: bool
    """Tell of every lease too; ask before building its fields."""

    def emit(self, kind: EventKind, /, **fields: object) -> None:
        """Fields are named as in the journal without the prefix, in lower case: pod, pod_ip, name, type, verdict,
        rule, policy, reason, address, port, protocol, ttl, upstream, generation."""
