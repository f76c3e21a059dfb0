"""UDP interception on the real kernel: who is asked, who is answered, and what one packet can do to another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dnsguard.core.model import LinkIndex
from dnsguard.demo.lab import Lab
from dnsguard.engine.contracts import Client
from dnsguard.listen.transparent import ListenSockets
from dnsguard.listen.udp import OnQuery, UdpListener
from dnsguard.mmsg import BATCH, LONGEST, ROOM
from tests.node.intercepted import ask, client, intercept, link_index, on_uvloop, received, until

pytestmark = pytest.mark.node

Query = tuple[bytes, str, LinkIndex, Client]


class Recorder:
    """An `on_query` that keeps what it was given and, if so wished, answers at once."""

    def __init__(self, answer: bool = True) -> None:
        self.queries: list[Query] = []
        self.errors: list[Exception] = []
        self._answer = answer

    def on_query(self, packet: bytes, source: str, link: LinkIndex, client: Client) -> None:
        self.queries.append((packet, source, link, client))
        if self._answer:
            client.reply(b"answer to " + packet)


@contextmanager
def listening(sockets: ListenSockets, recorder: Recorder, on_query: OnQuery | None = None) -> Iterator[UdpListener]:
    for unused in sockets.tcp:
        unused.close()
    listener = UdpListener(sockets.udp, on_query or recorder.on_query, recorder.errors.append)
    listener.start()
    try:
        yield listener
    finally:
        listener.close()


@pytest.mark.parametrize("asked", ["10.96.0.10", "8.8.8.8", "10.99.0.1", "fd00:10:96::10", "2001:db8::53", "fe80::1"])
@on_uvloop
async def test_a_connected_client_is_answered_from_whatever_address_it_asked(lab: Lab, asked: str) -> None:
    pod = lab.pod("a", "10.244.0.5", "fd00:10:244::5")
    with listening(intercept(lab), Recorder()):
        assert await ask(lab, pod, asked, b"a question") == b"answer to a question"


@on_uvloop
async def test_an_address_that_another_socket_of_the_node_holds_is_answered_all_the_same(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    lab.ip(lab.node, "addr add 169.254.20.10/32 dev lo")
    with lab.socket(lab.node, socket.AF_INET) as held, listening(intercept(lab), Recorder()):
        held.bind(("169.254.20.10", 53))
        assert await ask(lab, pod, "169.254.20.10", b"a question") == b"answer to a question"


@on_uvloop
async def test_a_service_address_is_answered_beside_its_translation(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    lab.run(
        lab.node,
        "nft",
        "add table ip kube; add chain ip kube nat { type nat hook prerouting priority -100; };"
        "add rule ip kube nat ip daddr 10.96.0.10 udp dport 53 dnat to 10.244.0.9:53",
    )
    with listening(intercept(lab), Recorder()):
        assert await ask(lab, pod, "10.96.0.10", b"a question") == b"answer to a question"


@pytest.mark.parametrize(("own", "asked"), [("10.244.0.5", "8.8.8.8"), ("fd00:10:244::5", "2001:db8::53")])
@on_uvloop
async def test_a_query_tells_the_pods_address_and_link(lab: Lab, own: str, asked: str) -> None:
    lab.pod("other", "10.244.0.9")
    pod = lab.pod("a", own)
    recorder = Recorder()
    with listening(intercept(lab), recorder):
        await ask(lab, pod, asked, b"a question")
    packet, source, link, _ = recorder.queries[0]
    assert (packet, source, link) == (b"a question", own, link_index(lab, pod))


@on_uvloop
async def test_queries_of_one_socket_have_one_identity_and_of_another_a_different_one(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    recorder = Recorder(answer=False)
    with listening(intercept(lab), recorder), client(lab, pod, "8.8.8.8") as one, client(lab, pod, "8.8.8.8") as other:
        for asking in (one, one, other):
            asking.send(b"a question")
        await until(lambda: len(recorder.queries) == 3)
    first, again, different = (query[3].identity for query in recorder.queries)
    assert first == again and hash(first) == hash(again)
    assert first != different


@on_uvloop
async def test_a_reply_given_later_arrives(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    recorder = Recorder(answer=False)
    with listening(intercept(lab), recorder), client(lab, pod, "8.8.8.8") as asking:
        asking.send(b"a question")
        await until(lambda: recorder.queries)
        recorder.queries[0][3].reply(b"late")
        assert await received(asking) == b"late"


@pytest.mark.parametrize("size", [40, ROOM // BATCH + 1000])
@on_uvloop
async def test_every_query_of_a_burst_is_answered_whatever_the_size_of_the_replies(lab: Lab, size: int) -> None:
    pod = lab.pod("a", "10.244.0.5")
    recorder = Recorder(answer=False)
    with listening(intercept(lab), recorder) as listener, client(lab, pod, "8.8.8.8") as asking:
        for number in range(3 * BATCH):
            asking.send(number.to_bytes(2, "big"))
        await until(lambda: len(recorder.queries) == 3 * BATCH)
        for packet, _, _, back in recorder.queries:
            back.reply(packet.ljust(size, b"."))
        await until(lambda: listener.counts[0].sent == 3 * BATCH)
        assert listener.counts[0].unsent == 0


@on_uvloop
async def test_the_replies_of_a_burst_stay_in_order_and_belong_to_their_queries(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    with listening(intercept(lab), Recorder()), client(lab, pod, "8.8.8.8") as asking:
        for number in range(2 * BATCH):
            asking.send(b"%d" % number)
        assert [await received(asking) for _ in range(2 * BATCH)] == [b"answer to %d" % n for n in range(2 * BATCH)]


@on_uvloop
async def test_an_error_in_handling_one_query_is_told_and_harms_no_other(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    recorder = Recorder()

    def fragile(packet: bytes, source: str, link: LinkIndex, back: Client) -> None:
        if packet == b"poison":
            raise ZeroDivisionError
        recorder.on_query(packet, source, link, back)

    with listening(intercept(lab), recorder, fragile), client(lab, pod, "8.8.8.8") as asking:
        asking.send(b"poison")
        asking.send(b"a question")
        assert await received(asking) == b"answer to a question"
    assert [type(error) for error in recorder.errors] == [ZeroDivisionError]


@on_uvloop
async def test_empty_and_overlong_datagrams_are_discarded_and_counted(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    recorder = Recorder()
    with listening(intercept(lab), recorder) as listener, client(lab, pod, "8.8.8.8") as asking:
        for packet in (b"", bytes(LONGEST + 1), bytes(LONGEST)):
            asking.send(packet)
        await until(lambda: recorder.queries)
        assert listener.counts[0].discarded == 2
    assert [len(query[0]) for query in recorder.queries] == [LONGEST]


@on_uvloop
async def test_replies_to_a_pod_that_has_gone_are_counted_and_the_others_arrive(lab: Lab) -> None:
    leaving, staying = lab.pod("leaving", "10.244.0.5"), lab.pod("staying", "10.244.0.6")
    recorder = Recorder(answer=False)
    with listening(intercept(lab), recorder) as listener, client(lab, staying, "8.8.8.8") as asking:
        with client(lab, leaving, "8.8.8.8") as gone:
            gone.send(b"one")
            gone.send(b"two")
            await until(lambda: len(recorder.queries) == 2)
        asking.send(b"three")
        await until(lambda: len(recorder.queries) == 3)
        lab.remove_pod(leaving)
        for packet, _, _, back in recorder.queries:
            back.reply(packet)
        assert await received(asking) == b"three"
        assert (listener.counts[0].unsent, listener.counts[0].sent) == (2, 1)


@on_uvloop
async def test_a_stopped_listener_takes_no_query_and_still_replies_and_a_closed_one_ignores_replies(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    recorder = Recorder(answer=False)
    with listening(intercept(lab), recorder) as listener, client(lab, pod, "8.8.8.8") as asking:
        asking.send(b"a question")
        await until(lambda: recorder.queries)
        back = recorder.queries[0][3]
        listener.stop()
        asking.send(b"too late")
        back.reply(b"first")
        assert await received(asking) == b"first"
        listener.close()
        back.reply(b"second")
        await asyncio.sleep(0)
        assert len(recorder.queries) == 1
        with pytest.raises((TimeoutError, ConnectionError, BlockingIOError)):
            asking.recv(100)
