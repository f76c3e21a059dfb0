"""Which packet may answer which question, and what is held against a question."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dnsguard.upstream.matching import MAX_DISCARDS, Suspicions, identifiers, objection
from tests.upstreams import Ask, question

SECTION = question("www.example.test")
COUNTS = b"\x00\x01\x00\x00\x00\x00\x00\x00"


def reply(
    section: bytes = SECTION, *, flags: bytes = b"\x81\x80", counts: bytes = COUNTS, ident: bytes = b"\x12\x34"
) -> bytes:
    return ident + flags + counts + section


class TestObjection:
    def test_the_same_question_is_an_answer(self) -> None:
        assert objection(reply(), SECTION) is None

    def test_letters_of_the_name_may_differ_in_case(self) -> None:
        assert objection(reply(question("WWW.Example.tEST")), SECTION) is None

    def test_a_query_is_no_answer(self) -> None:
        assert objection(reply(flags=b"\x01\x00"), SECTION) == "qr"

    def test_another_name_is_no_answer(self) -> None:
        assert objection(reply(question("wwx.example.test")), SECTION) == "question"

    def test_type_65_is_not_type_97_although_they_fold_alike(self) -> None:
        assert objection(reply(question("a.test", 97)), question("a.test", 65)) == "question"

    def test_two_questions_are_no_answer(self) -> None:
        assert objection(reply(counts=b"\x00\x02" + COUNTS[2:]), SECTION) == "question"

    @pytest.mark.parametrize("size", range(12))
    def test_less_than_a_header_is_short(self, size: int) -> None:
        assert objection(reply()[:size], SECTION) == "short"

    @pytest.mark.parametrize("rcode", [1, 2, 4, 5])
    def test_an_error_may_come_without_the_question(self, rcode: int) -> None:
        assert objection(reply(b"", flags=bytes((0x81, 0x80 | rcode)), counts=bytes(8)), SECTION) is None

    @pytest.mark.parametrize("rcode", [0, 3])
    def test_data_or_a_denial_may_not_come_without_the_question(self, rcode: int) -> None:
        assert objection(reply(b"", flags=bytes((0x81, 0x80 | rcode)), counts=bytes(8)), SECTION) == "question"

    @given(st.binary(max_size=64), st.binary(min_size=5, max_size=40))
    def test_any_bytes_get_a_judgement(self, packet: bytes, section: bytes) -> None:
        assert objection(packet, section) in (None, "short", "qr", "question")


class TestSuspicions:
    def test_twenty_wrong_answers_to_one_question_are_garbage(self) -> None:
        suspicions = Suspicions({b"\x12\x34": Ask(SECTION)}, {})

        judged = [suspicions.weigh(reply(ident=bytes((1, n)))) for n in range(MAX_DISCARDS)]

        assert judged == [None] * 19 + [(b"\x12\x34", "garbage")]

    def test_wrong_answers_to_other_questions_count_against_nobody(self) -> None:
        suspicions = Suspicions({b"\x12\x34": Ask(SECTION)}, {})

        judged = [suspicions.weigh(reply(question("other.test"), ident=b"\x00\x01")) for _ in range(3 * MAX_DISCARDS)]

        assert set(judged) == {None}

    def test_each_is_counted_by_server_and_reason(self) -> None:
        discarded: dict[str, int] = {}
        suspicions = Suspicions({b"\x12\x34": Ask(SECTION)}, discarded)
        suspicions.abandoned(b"\x77\x77")

        for packet in (
            b"",
            reply(ident=b"\x00\x01"),
            reply(flags=b"\x01\x00"),
            reply(b"\x00" * 5),
            reply(ident=b"\x77\x77"),
        ):
            suspicions.weigh(packet)

        assert discarded == dict.fromkeys(("short", "id", "qr", "question", "late"), 1)

    def test_late_answers_are_not_held_against_the_question_when_it_is_asked_again(self) -> None:
        suspicions = Suspicions({b"\x12\x34": Ask(SECTION)}, {})
        suspicions.abandoned(b"\x77\x77")

        judged = [suspicions.weigh(reply(ident=b"\x77\x77")) for _ in range(2 * MAX_DISCARDS)]

        assert set(judged) == {None}

    @given(st.lists(st.binary(max_size=40), max_size=60))
    def test_any_packets_are_weighed(self, packets: list[bytes]) -> None:
        discarded: dict[str, int] = {}
        suspicions = Suspicions({b"\x12\x34": Ask(SECTION)}, discarded)

        judged = [suspicions.weigh(packet) for packet in packets]

        accepted = judged.count((b"\x12\x34", None))
        assert sum(discarded.values()) + accepted == len(packets)


def test_identifiers_are_two_octets_and_spread() -> None:
    drawn = list(islice(identifiers(), 5000))

    assert {len(one) for one in drawn} == {2}
    assert len(set(drawn)) > 4000


IDENTS = st.integers(0, 3).map(lambda number: bytes((0, number)))
NAMES = st.integers(0, 3).map(lambda number: question(f"{number}.test"))


class Socket(RuleBasedStateMachine):
    """A socket with few IDs and few names, so that questions meet the packets of others; beside it a plain account of
    what is held against each question."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: dict[bytes, Ask] = {}
        self.discarded: dict[str, int] = {}
        self.suspicions = Suspicions(self.pending, self.discarded)
        self.strikes: dict[bytes, int] = {}
        self.gone: set[bytes] = set()
        self.reasons: dict[str, int] = {}

    @rule(ident=IDENTS, section=NAMES)
    def ask(self, ident: bytes, section: bytes) -> None:
        if ident not in self.pending:
            self.pending[ident] = Ask(section)
            self.strikes[ident] = 0

    @precondition(lambda self: self.pending)
    @rule(choice=st.integers(0, 3))
    def give_up(self, choice: int) -> None:
        ident = list(self.pending)[choice % len(self.pending)]
        self._end(ident)
        self.suspicions.abandoned(ident)
        self.gone.add(ident)

    @precondition(lambda self: self.pending)
    @rule(choice=st.integers(0, 3), upper=st.booleans())
    def answer(self, choice: int, upper: bool) -> None:
        ident, asked = list(self.pending.items())[choice % len(self.pending)]
        section = asked.section[:-4].upper() + asked.section[-4:] if upper else asked.section

        assert self.suspicions.weigh(reply(section, ident=ident)) == (ident, None)

        self._end(ident)
        self.suspicions.answered(ident)

    @rule(ident=IDENTS, section=NAMES, times=st.sampled_from([1, 1, 5, MAX_DISCARDS - 1]))
    def guess(self, ident: bytes, section: bytes, times: int) -> None:
        """Packets without a right pair of ID and question."""
        for _ in range(times):
            if ident in self.pending and self.pending[ident].section == section:
                return
            self._weigh(reply(section, ident=ident), section, "question")

    @rule(ident=IDENTS, section=NAMES)
    def echo(self, ident: bytes, section: bytes) -> None:
        """A query where an answer should be."""
        self._weigh(reply(section, ident=ident, flags=b"\x01\x00"), section, "qr")

    def _weigh(self, packet: bytes, section: bytes, reason: str) -> None:
        """`reason` is what is said against it where its ID is one that is waited for."""
        suspect: bytes | None = packet[:2]
        if suspect in self.gone and suspect not in self.pending:
            suspect, reason = None, "late"
        elif suspect not in self.pending:
            suspect, reason = next((i for i, asked in self.pending.items() if asked.section == section), None), "id"
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if suspect is not None:
            self.strikes[suspect] += 1

        judged = self.suspicions.weigh(packet)

        if suspect is not None and self.strikes[suspect] == MAX_DISCARDS:
            assert judged == (suspect, "garbage")
            self._end(suspect)
            self.suspicions.answered(suspect)
        else:
            assert judged is None

    def _end(self, ident: bytes) -> None:
        del self.pending[ident]
        del self.strikes[ident]

    @invariant()
    def every_packet_that_was_not_believed_is_counted_once_with_its_reason(self) -> None:
        assert self.discarded == self.reasons


TestSocket = Socket.TestCase
