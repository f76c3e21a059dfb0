"""What may be said of a history that was played: where the lines let different packets, whether there is a reason.

`DEVIATIONS` is the table of all reasons there are. `broken` is what no reason excuses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.contract.flows import PING, SCTP, TCP, What
from tests.contract.flows_play import Fate

Past = Sequence[Fate]
"""The packets before, of all flows of the history."""


class Deviation(NamedTuple):
    """`nftables`, `ebpf` and `both` are what each does with such a packet."""

    name: str
    reason: str
    passed: tuple[bool, bool, bool]
    holds: Callable[[Fate, Past], bool]


def _of_flow(fate: Fate, past: Past) -> list[Fate]:
    return [each for each in past if each.talk == fate.talk]


def _is_tcp(fate: Fate) -> bool:
    return fate.talk.protocol == TCP and fate.step.what is not What.ERROR


def _taken_up(fate: Fate, past: Past) -> bool:
    return _is_tcp(fate) and not fate.step.by_pod and fate.tracked == "new" and fate.allowed


def _invalid_towards_pod(fate: Fate, past: Past) -> bool:
    return _is_tcp(fate) and not fate.step.by_pod and fate.tracked == "invalid"


def _invalid_from_pod(fate: Fate, past: Past) -> bool:
    """This packet, or what the peer has answered with."""
    if fate.talk.protocol not in (TCP, SCTP) or fate.step.what is What.ERROR or not fate.step.by_pod:
        return False
    answers = [each for each in _of_flow(fate, past) if not each.step.by_pod and each.ebpf]
    return bool(answers) and "invalid" in (fate.tracked, *(each.tracked for each in answers))


_NO_ANSWERS = (What.RST, What.NULL, What.SYN_FIN, What.ERROR)


def _begun_anew(fate: Fate, past: Past) -> bool:
    """The pod sent a SYN or an INIT, and nothing came back since that answers it."""
    flow = _of_flow(fate, past)
    syns = [n for n, each in enumerate(flow) if each.step.by_pod and each.step.what in (What.SYN, What.INIT)]
    since = flow[syns[-1] :] if syns else []
    answered = any(not each.step.by_pod and each.ebpf and each.step.what not in _NO_ANSWERS for each in since)
    connected = fate.talk.protocol in (TCP, SCTP) and fate.step.what is not What.ERROR
    return connected and bool(syns) and not answered


def _invalid_reset(fate: Fate, past: Past) -> bool:
    flow = _of_flow(fate, past)
    return _is_tcp(fate) and any(
        each.step.what is What.RST and each.tracked == "invalid" and each.ebpf for each in flow
    )


def _unseen(fate: Fate, past: Past) -> bool:
    """A packet of this flow did not get as far as connection tracking, where both are."""
    return any(each.tracked != each.tracked_in_both for each in (*_of_flow(fate, past), fate))


DEVIATIONS = (
    Deviation(
        "taken up by the peer",
        "nftables lets no peer go on with TCP that it does not know; eBPF, which may have had no room for the flow, "
        "does where the pod might begin it: the peer's segments pass, and open nothing",
        (False, True, False),
        _taken_up,
    ),
    Deviation(
        "invalid, towards the pod",
        "segments that connection tracking calls invalid are no new flow to nftables, which lets them on to the pod; "
        "eBPF drops TCP of no flow that is no SYN, whatever else is wrong with it",
        (True, False, False),
        _invalid_towards_pod,
    ),
    Deviation(
        "invalid, or answered by what is",
        "connection tracking looks at sequence numbers, tags and whose turn it is, and nftables decides by the rules "
        "on what it calls invalid; eBPF looks at none of them: what belongs to an open flow passes",
        (False, True, False),
        _invalid_from_pod,
    ),
    Deviation(
        "begun anew",
        "a SYN or INIT that is let on an open flow's ports begins another, and one that is not let ends a closing one: "
        "eBPF then waits for the peer; connection tracking has seen it in either case, and may call the flow open",
        (True, False, False),
        _begun_anew,
    ),
    Deviation(
        "reset by what is invalid",
        "a reset ends a flow in which not both have spoken in eBPF whatever its numbers are; not so in connection "
        "tracking",
        (True, False, False),
        _invalid_reset,
    ),
)
SEEN_LESS = Deviation(
    "not seen",
    "what eBPF drops at the link connection tracking never sees, alone it does: it may call what follows otherwise",
    (True, True, False),
    _unseen,
)


def heard(fate: Fate, past: Past) -> bool:
    """Whether the pod had a packet of the peer's in this flow: nothing else makes it open."""
    answered = {What.REQUEST: What.REPLY, What.REPLY: What.REQUEST}.get(fate.step.what)
    return any(
        not each.step.by_pod and each.ebpf and each.step.what is not What.ERROR and answered in (None, each.step.what)
        for each in _of_flow(fate, past)
    )


def deviation(fate: Fate, past: Past) -> Deviation | None:
    """Why the lines do not agree. Raises LookupError when there is no reason."""
    nftables, ebpf, both = fate.passed
    if nftables == ebpf == both:
        return None
    for each in DEVIATIONS:
        if each.passed == fate.passed and each.holds(fate, past):
            return each
    if both != (nftables and ebpf) and _unseen(fate, past):
        return SEEN_LESS
    raise LookupError(fate)


def broken(fate: Fate, past: Past) -> str | None:
    """What is wrong in any case."""
    step = fate.step
    if fate.cut and fate.talk.protocol != PING and step.what is not What.ERROR and any(fate.passed):
        return "of a flow that was cut something passes"
    if not step.by_pod or fate.allowed:
        return None
    if step.what in (What.SYN, What.INIT, What.SYN_FIN) and any(fate.passed):
        return "a flow begins that no rule allows"
    if not heard(fate, past) and any(fate.passed):
        return "a packet passes of a flow that nobody has answered and no rule allows"
    return None


def wrong(fates: Sequence[Fate]) -> list[str]:
    """What was found in a history, beside the deviations that have a reason."""
    found = []
    for number, fate in enumerate(fates):
        past = fates[:number]
        try:
            deviation(fate, past)
        except LookupError:
            found.append(f"packet {number}: the lines do not agree: {fate}")
        if why := broken(fate, past):
            found.append(f"packet {number}: {why}: {fate}")
    return found


def counted(fates: Sequence[Fate]) -> Counter[str]:
    """Packets, those let through, and each deviation by name."""
    found = [each for number, fate in enumerate(fates) if (each := deviation(fate, fates[:number]))]
    return Counter({"packets": len(fates), "let through": sum(all(fate.passed) for fate in fates)}) + Counter(
        each.name for each in found
    )
