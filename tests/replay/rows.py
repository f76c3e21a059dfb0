"""Where each row of the DNS behaviour is tried: this table is the index, test_rows.py keeps it true.

A row's scenarios are those that carry it as `row` in the YAML files beside this one. Rows that a scenario cannot play,
or not alone, name tests as well: (module, function).
"""

from __future__ import annotations

Test = tuple[str, str]

ROWS: dict[str, tuple[Test, ...]] = {
    "denied name": (),
    "allowed name, any type": (),
    "upstream NXDOMAIN, NODATA": (),
    "CNAME chain": (),
    "records of another owner, class or malformed": (),
    "protected address in an answer": (),
    "more than `addressesPerName`": (),
    "TTLs": (),
    "HTTPS/SVCB": (),
    "header abuse": (),
    "EDNS": (),
    "truncated upstream answer": (),
    "FORMERR, NOTIMP, BADVERS without OPT": (),
    "bad upstream packet": (("tests.unit.test_upstream_udp", "*"), ("tests.unit.test_upstream_matching", "*")),
    "identical questions in flight": (),
    "no upstream answers": (("tests.unit.test_upstream_health", "*"), ("tests.unit.test_attempts", "*")),
    "cache hit": (),
    "address closed by earlier Deny rules on all ports of the rules that allow the name": (
        ("tests.replay.test_barriers", "test_an_address_that_an_earlier_deny_closes_on_all_ports_is_not_shown"),
        ("tests.replay.test_barriers", "test_when_a_deny_closes_every_address_the_pod_gets_nodata_and_the_reason"),
    ),
    "kernel write failed or late": (),
    "over a limit": (),
    "TCP": (("tests.node.test_listen_tcp", "*"), ("tests.unit.test_engine", "test_a_pod_has_its_share_of_connections")),
    "port 53 traffic that is not DNS": (("tests.node.test_listen_tcp", "*"), ("tests.node.test_listen_udp", "*")),
}
