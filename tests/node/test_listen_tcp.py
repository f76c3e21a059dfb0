"""TCP interception on the real kernel: framing, order, ends and limits of connections."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from dnsguard.core.framing import framed
from dnsguard.core.model import LinkIndex
from dnsguard.demo.lab import Lab, Pod
from dnsguard.engine.contracts import Client
from dnsguard.listen.tcp import WRITE_PAUSE, Release, TcpConnection, TcpLimits, TcpListener
from dnsguard.listen.transparent import ListenSockets
from tests.node.intercepted import DEADLINE, client, intercept, link_index, on_uvloop, received, until

pytestmark = pytest.mark.node

ONE, TWO = b"first question", b"second question"


def highest_descriptor() -> int:
    return max(int(path.name) for path in Path("/proc/self/fd").iterdir())


class Server:
    """What the listener calls: answers at once unless told to wait, admits unless told not to."""

    def __init__(self, *, answer: bool = True, room: int = 1000) -> None:
        self.queries: list[tuple[bytes, str, LinkIndex, Client]] = []
        self.errors: list[Exception] = []
        self.admitted: list[tuple[str, LinkIndex]] = []
        self.released = 0
        self._answer, self._room = answer, room

    def on_query(self, packet: bytes, source: str, link: LinkIndex, client: Client) -> None:
        if packet.startswith(b"poison"):
            raise ZeroDivisionError
        self.queries.append((packet, source, link, client))
        if self._answer:
            client.reply(b"answer to " + packet)

    def admit(self, source: str, link: LinkIndex) -> Release | None:
        if len(self.admitted) - self.released >= self._room:
            return None
        self.admitted.append((source, link))
        return self._release

    def _release(self) -> None:
        self.released += 1


@asynccontextmanager
async def listening(
    sockets: ListenSockets, server: Server, limits: TcpLimits | None = None
) -> AsyncIterator[TcpListener]:
    for unused in sockets.udp:
        unused.close()
    listener = TcpListener(sockets.tcp, server.on_query, server.errors.append, admit=server.admit, limits=limits)
    await listener.start()
    try:
        yield listener
    finally:
        listener.close()
        await until(lambda: server.released == len(server.admitted))


@contextmanager
def connected(lab: Lab, pod: Pod, asked: str = "8.8.8.8") -> Iterator[socket.socket]:
    with client(lab, pod, asked, socket.SOCK_STREAM) as asking:
        yield asking


async def answers(asking: socket.socket, count: int) -> list[bytes]:
    """The next `count` messages, without their lengths."""
    stream = b""
    found: list[bytes] = []
    while len(found) < count:
        while len(stream) < 2 or len(stream) < 2 + int.from_bytes(stream[:2], "big"):
            more = await received(asking)
            assert more, "the connection ended early"
            stream += more
        length = int.from_bytes(stream[:2], "big")
        found.append(stream[2 : 2 + length])
        stream = stream[2 + length :]
    assert stream == b""
    return found


async def ended(asking: socket.socket) -> bool:
    """True once the other side has ended the connection, in whichever way; anything it still sent is dropped."""
    try:
        while await received(asking):
            pass
    except ConnectionResetError:
        pass
    return True


async def filled(back: TcpConnection) -> None:
    """Reply until the kernel takes no more: its own buffers grow for a while."""
    unchanged = before = 0
    while unchanged < 10:
        if back.waiting <= 2 * WRITE_PAUSE:
            back.reply(bytes(60_000))
        await asyncio.sleep(0.002)
        unchanged, before = unchanged + 1 if back.waiting == before > WRITE_PAUSE else 0, back.waiting


@pytest.mark.parametrize("asked", ["10.96.0.10", "8.8.8.8", "10.99.0.1", "fd00:10:96::10", "2001:db8::53"])
@on_uvloop
async def test_a_connection_to_any_address_is_answered_from_it(lab: Lab, asked: str) -> None:
    pod = lab.pod("a", "10.244.0.5", "fd00:10:244::5")
    async with listening(intercept(lab), Server()):
        with connected(lab, pod, asked) as asking:
            asking.send(framed(ONE))
            assert await answers(asking, 1) == [b"answer to " + ONE]


@on_uvloop
async def test_an_address_and_port_that_another_socket_of_the_node_holds_is_answered_all_the_same(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    lab.ip(lab.node, "addr add 169.254.20.10/32 dev lo")
    with lab.socket(lab.node, socket.AF_INET, socket.SOCK_STREAM) as held:
        held.bind(("169.254.20.10", 53))
        held.listen()
        async with listening(intercept(lab), Server()):
            with connected(lab, pod, "169.254.20.10") as asking:
                asking.send(framed(ONE))
                assert await answers(asking, 1) == [b"answer to " + ONE]


@on_uvloop
async def test_a_service_address_is_answered_beside_its_translation(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    lab.run(
        lab.node,
        "nft",
        "add table ip kube; add chain ip kube nat { type nat hook prerouting priority -100; };"
        "add rule ip kube nat ip daddr 10.96.0.10 tcp dport 53 dnat to 10.244.0.9:53",
    )
    async with listening(intercept(lab), Server()):
        with connected(lab, pod, "10.96.0.10") as asking:
            asking.send(framed(ONE))
            assert await answers(asking, 1) == [b"answer to " + ONE]


@pytest.mark.parametrize(("own", "asked"), [("10.244.0.5", "8.8.8.8"), ("fd00:10:244::5", "2001:db8::53")])
@on_uvloop
async def test_a_query_and_its_admission_tell_the_pods_address_and_link(lab: Lab, own: str, asked: str) -> None:
    lab.pod("other", "10.244.0.9")
    pod = lab.pod("a", own)
    server = Server()
    async with listening(intercept(lab), server):
        with connected(lab, pod, asked) as asking:
            asking.send(framed(ONE))
            await until(lambda: server.queries)
    assert server.queries[0][:3] == (ONE, own, link_index(lab, pod))
    assert server.admitted == [(own, link_index(lab, pod))]


@on_uvloop
async def test_pipelined_queries_are_answered_in_any_order(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server(answer=False)
    async with listening(intercept(lab), server):
        with connected(lab, pod) as asking:
            asking.send(framed(ONE) + framed(TWO))
            await until(lambda: len(server.queries) == 2)
            for packet, _, _, back in reversed(server.queries):
                back.reply(packet.upper())
            assert await answers(asking, 2) == [TWO.upper(), ONE.upper()]


@on_uvloop
async def test_a_query_may_come_in_single_octets(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    async with listening(intercept(lab), Server()):
        with connected(lab, pod) as asking:
            asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for octet in framed(ONE):
                asking.send(bytes([octet]))
            assert await answers(asking, 1) == [b"answer to " + ONE]


@on_uvloop
async def test_a_client_that_closed_its_sending_side_gets_every_answer_and_then_the_end(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server(answer=False)
    async with listening(intercept(lab), server):
        with connected(lab, pod) as asking:
            asking.send(framed(ONE) + framed(TWO))
            asking.shutdown(socket.SHUT_WR)
            await until(lambda: len(server.queries) == 2)
            for packet, _, _, back in server.queries:
                await asyncio.sleep(0)
                back.reply(packet)
            assert await answers(asking, 2) == [ONE, TWO]
            assert await received(asking) == b""


@on_uvloop
async def test_a_client_that_ends_without_a_question_is_let_go(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    async with listening(intercept(lab), Server()):
        with connected(lab, pod) as asking:
            asking.shutdown(socket.SHUT_WR)
            assert await received(asking) == b""


@pytest.mark.parametrize("length", [0, 1, 11])
@on_uvloop
async def test_a_message_shorter_than_a_header_ends_the_connection_after_what_was_asked_before(
    lab: Lab, length: int
) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server()
    async with listening(intercept(lab), server):
        with connected(lab, pod) as asking:
            asking.send(framed(ONE) + framed(bytes(length)) + framed(TWO))
            assert await answers(asking, 1) == [b"answer to " + ONE]
            assert await ended(asking)
    assert [query[0] for query in server.queries] == [ONE]


@on_uvloop
async def test_a_client_that_sends_only_parts_of_a_query_is_cut_when_idle(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    async with listening(intercept(lab), Server(), TcpLimits(idle=0.2)) as listener:
        with connected(lab, pod) as asking:
            asking.send(framed(ONE)[:-1])
            assert await ended(asking)
        assert listener.cut == 1


@on_uvloop
async def test_a_client_that_keeps_asking_is_cut_when_its_time_is_over_and_not_before(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    async with listening(intercept(lab), Server(), TcpLimits(idle=0.3, total=1.0)) as listener:
        with connected(lab, pod) as asking:
            now = asyncio.get_running_loop().time
            begun = now()
            with pytest.raises((ConnectionError, AssertionError)):
                while now() < begun + DEADLINE:
                    asking.send(framed(ONE))
                    await answers(asking, 1)
                    await asyncio.sleep(0.02)
            assert now() - begun >= 0.95
        assert listener.cut == 1


@on_uvloop
async def test_a_connection_whose_descriptor_is_kept_for_others_is_turned_away_and_told_of(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server, crowded = Server(), Counter[str]()
    async with listening(intercept(lab), server, TcpLimits(descriptors=3)) as listener:
        listener.on_crowded = lambda: crowded.update(["told"])
        with connected(lab, pod) as asking:
            assert await ended(asking)
        assert listener.refused == 1
    assert (server.admitted, crowded["told"]) == ([], 1)


@on_uvloop
async def test_a_client_that_does_not_read_its_answers_is_cut(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server(answer=False)
    async with listening(intercept(lab), server) as listener:
        with connected(lab, pod) as asking:
            asking.send(framed(ONE) * 200)
            await until(lambda: len(server.queries) == 200)
            for *_, back in server.queries:
                back.reply(bytes(65_535))
            assert listener.cut == 1
            assert await ended(asking)


@on_uvloop
async def test_queries_are_not_read_while_answers_wait_and_are_afterwards(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server(answer=False)
    async with listening(intercept(lab), server):
        with connected(lab, pod) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel lets its window grow
            asking.send(framed(ONE))
            await until(lambda: server.queries)
            back = server.queries[0][3]
            assert isinstance(back, TcpConnection)
            await filled(back)
            asking.send(framed(TWO))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert len(server.queries) == 1
            reading = asyncio.create_task(ended(asking))
            await until(lambda: len(server.queries) == 2)
            reading.cancel()


@on_uvloop
async def test_a_connection_that_is_not_admitted_ends_and_one_after_a_release_is_served(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server(room=1)
    async with listening(intercept(lab), server) as listener:
        with connected(lab, pod) as first:
            first.send(framed(ONE))
            await answers(first, 1)
            with connected(lab, pod) as refused:
                assert await ended(refused)
            assert listener.refused == 1
        await until(lambda: server.released == 1)
        with connected(lab, pod) as later:
            later.send(framed(TWO))
            assert await answers(later, 1) == [b"answer to " + TWO]


@on_uvloop
async def test_an_error_in_handling_one_query_is_told_and_harms_no_other(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server()
    async with listening(intercept(lab), server):
        with connected(lab, pod) as asking:
            asking.send(framed(b"poisoned question") + framed(ONE))
            assert await answers(asking, 1) == [b"answer to " + ONE]
    assert [type(error) for error in server.errors] == [ZeroDivisionError]


@on_uvloop
async def test_a_reply_to_a_client_that_has_gone_is_ignored(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server(answer=False)
    async with listening(intercept(lab), server) as listener:
        with connected(lab, pod) as asking:
            asking.send(framed(ONE))
            await until(lambda: server.queries)
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends a reset
        await until(lambda: not listener.connections)
        server.queries[0][3].reply(b"too late")
    assert server.errors == []


@on_uvloop
async def test_a_stopped_listener_answers_what_was_asked_and_takes_nothing_more(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    server = Server(answer=False)
    async with listening(intercept(lab), server) as listener:
        with connected(lab, pod) as asking, connected(lab, pod) as silent:
            asking.send(framed(ONE))
            await until(lambda: server.queries and len(listener.connections) == 2)
            listener.stop()
            assert await ended(silent)
            server.queries[0][3].reply(b"the last answer")
            assert await answers(asking, 1) == [b"the last answer"]
            assert await received(asking) == b""


@on_uvloop
async def test_when_descriptors_ran_out_later_connections_are_served_again(lab: Lab) -> None:
    pod = lab.pod("a", "10.244.0.5")
    async with listening(intercept(lab), Server()):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with connected(lab, pod) as early:
            early.send(framed(ONE))
            await answers(early, 1)
            highest = highest_descriptor()
            waiting = [lab.socket(pod.namespace, socket.AF_INET, socket.SOCK_STREAM) for _ in range(3)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            try:
                for one in waiting:
                    one.connect(("8.8.8.8", 53))
                early.send(framed(TWO))
                assert await answers(early, 1) == [b"answer to " + TWO]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in waiting:
            one.close()
        with connected(lab, pod) as later:
            later.send(framed(TWO))
            assert await answers(later, 1) == [b"answer to " + TWO]


@on_uvloop
async def test_a_listener_that_never_started_closes_its_sockets(lab: Lab) -> None:
    sockets = intercept(lab)
    server = Server()
    TcpListener(sockets.tcp, server.on_query, server.errors.append, admit=server.admit).close()
    assert [one.fileno() for one in sockets.tcp] == [-1, -1]
    sockets.close()
