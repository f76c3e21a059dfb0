"""The small authoritative server of the demo and the tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from dnslib import EDNS0, QTYPE, RCODE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.demo.server import Zone, open_sockets, served


@pytest.fixture
def zone() -> Zone:
    zone = Zone()
    zone.put("www.example.test", "A", "192.0.2.1", "192.0.2.2", ttl=30)
    zone.put("alias.example.test", "CNAME", "www.example.test.", ttl=90)
    zone.put("*.wild.test", "A", "192.0.2.9")
    return zone


def told(zone: Zone, name: str, kind: str = "A", *, stream: bool = False) -> DNSRecord:
    return DNSRecord.parse(zone.respond(bytes(DNSRecord.question(name, kind).pack()), stream=stream).packets[0])


def shown(record: DNSRecord) -> list[tuple[str, str, str, int]]:
    return [(str(rr.rname), QTYPE[rr.rtype], str(rr.rdata), rr.ttl) for rr in record.rr]


def test_a_name_has_its_records(zone: Zone) -> None:
    assert shown(told(zone, "WWW.example.test")) == [
        ("www.example.test.", "A", "192.0.2.1", 30),
        ("www.example.test.", "A", "192.0.2.2", 30),
    ]


def test_the_question_comes_back_as_it_was_spelt(zone: Zone) -> None:
    assert b"\x03WwW" in zone.respond(bytes(DNSRecord.question("WwW.example.test").pack()), stream=False).packets[0]


def test_an_alias_is_followed(zone: Zone) -> None:
    assert [kind for _, kind, _, _ in shown(told(zone, "alias.example.test"))] == ["CNAME", "A", "A"]


def test_an_alias_is_itself_when_asked_for(zone: Zone) -> None:
    assert [kind for _, kind, _, _ in shown(told(zone, "alias.example.test", "CNAME"))] == ["CNAME"]


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("nothing.example.test", "A", RCODE.NXDOMAIN),
        ("www.example.test", "AAAA", RCODE.NOERROR),
        ("example.test", "A", RCODE.NOERROR),
        ("a.wild.test", "TXT", RCODE.NOERROR),
        ("alias.example.test", "AAAA", RCODE.NOERROR),
    ],
)
def test_what_is_not_there_is_denied_with_an_soa(zone: Zone, name: str, kind: str, rcode: int) -> None:
    reply = told(zone, name, kind)

    assert reply.header.rcode == rcode
    assert [QTYPE[rr.rtype] for rr in reply.auth] == ["SOA"]


def test_a_wildcard_answers_for_names_of_any_depth(zone: Zone) -> None:
    assert shown(told(zone, "a.b.wild.test")) == [("a.b.wild.test.", "A", "192.0.2.9", 60)]


def test_an_entry_may_fail_truncate_drop_and_spoil(zone: Zone) -> None:
    zone.put("broken.test", "ANY", rcode=RCODE.SERVFAIL)
    zone.put("large.test", "A", "192.0.2.1", truncate=True)
    zone.put("silent.test", "A", drop=True)
    zone.put("spoilt.test", "A", "192.0.2.1", spoil=lambda packet: [b"noise", packet])

    assert told(zone, "broken.test", "AAAA").header.rcode == RCODE.SERVFAIL
    assert told(zone, "large.test").header.tc == 1
    assert len(told(zone, "large.test", stream=True).rr) == 1
    assert zone.respond(bytes(DNSRecord.question("silent.test").pack()), stream=False).packets == ()
    assert zone.respond(bytes(DNSRecord.question("spoilt.test").pack()), stream=False).packets[0] == b"noise"


def test_what_does_not_fit_is_truncated_over_udp_only(zone: Zone) -> None:
    zone.put("many.test", "A", *(f"192.0.2.{n}" for n in range(100)))

    query = DNSRecord.question("many.test")
    query.add_ar(EDNS0(udp_len=1232))
    with_edns = DNSRecord.parse(zone.respond(bytes(query.pack()), stream=False).packets[0])

    assert told(zone, "many.test").header.tc == 1
    assert with_edns.header.tc == 1
    assert len(told(zone, "many.test", stream=True).rr) == 100


def test_a_server_that_never_heard_of_edns_refuses_it() -> None:
    zone = Zone(edns=False)
    zone.put("a.test", "A", "192.0.2.1")
    query = DNSRecord.question("a.test")
    query.add_ar(EDNS0(udp_len=1232))

    refused = zone.respond(bytes(query.pack()), stream=False).packets[0]

    assert (refused[3], refused[4:]) == (RCODE.FORMERR, bytes(8))
    assert told(zone, "a.test").header.rcode == RCODE.NOERROR


def test_it_remembers_what_it_was_asked(zone: Zone) -> None:
    told(zone, "WWW.example.test")
    told(zone, "www.example.test", "AAAA")

    assert zone.asked("www.example.test.") == 2
    assert zone.asked("www.example.test", "AAAA") == 1
    assert zone.names_asked() == {"www.example.test"}


@given(st.binary(max_size=80))
def test_any_bytes_are_met_with_a_reply_or_silence(query: bytes) -> None:
    for packet in Zone().respond(query, stream=False).packets:
        assert packet[:2] == query[:2]


@pytest.fixture
def port(zone: Zone) -> Iterator[int]:
    sockets = open_sockets(["127.0.0.1", "::1"], 0)
    with served(zone, sockets):
        yield sockets[0].getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("tcp", [False, True])
def test_it_serves_both_families_over_udp_and_tcp(zone: Zone, port: int, address: str, tcp: bool) -> None:
    reply = DNSRecord.question("www.example.test").send(address, port, tcp=tcp, timeout=5, ipv6=":" in address)

    assert len(DNSRecord.parse(reply).rr) == 2


def test_the_table_may_change_while_it_serves(zone: Zone, port: int) -> None:
    zone.put("www.example.test", "A", "192.0.2.77")
    reply = DNSRecord.parse(DNSRecord.question("www.example.test").send("127.0.0.1", port, timeout=5))
    zone.remove("www.example.test", "A")
    gone = DNSRecord.parse(DNSRecord.question("www.example.test").send("127.0.0.1", port, timeout=5))

    assert [str(rr.rdata) for rr in reply.rr] == ["192.0.2.77"]
    assert gone.header.rcode == RCODE.NXDOMAIN


def test_a_delayed_answer_holds_up_no_other(zone: Zone, port: int) -> None:
    zone.put("slow.test", "A", "192.0.2.1", delay=60)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        client.send(bytes(DNSRecord.question("slow.test").pack()))
        client.send(bytes(DNSRecord.question("www.example.test").pack()))

        first = DNSRecord.parse(client.recv(4096))

    assert str(first.q.qname) == "www.example.test."


def test_sockets_are_closed_when_serving_ends(zone: Zone) -> None:
    sockets = open_sockets(["127.0.0.1"], 0)
    with served(zone, sockets):
        port = sockets[0].getsockname()[1]

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert [each.fileno() for each in sockets] == [-1, -1]
