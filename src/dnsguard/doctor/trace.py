"""Which nftables chain dropped the packets of one link: the kernel traces them, and names each that decides.

The tracing rule stands in a table of our own, before every other, and speaks of that link only. The table has an owner
and goes with this process, however it ends; on kernels without owners a later run removes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from dnsguard.core.model import Seconds
from dnsguard.doctor.kernel import SCRATCH
from dnsguard.enforce.nftables import netlink
from dnsguard.enforce.nftables.session import OWNER, Session, make_table

FIRST: Final = -1000
"""Priority: before fragments are put together, and before every chain that has a usual one."""
_GROUP, _TRACE = 9, 17
"""NFNLGRP_NFTRACE, NFT_MSG_TRACE (linux/netfilter/nfnetlink.h, nf_tables.h)."""
_TABLE, _CHAIN, _TYPE, _VERDICT, _POLICY = 1, 2, 4, 5, 16
_BY_POLICY, _BY_RULE = 1, 3
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_FAMILIES: Final = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_DROP: Final = 0


class Dropping(NamedTuple):
    """A chain that dropped a packet, by a rule or by its policy."""

    family: str
    table: str
    chain: str
    by_policy: bool

    def __str__(self) -> str:
        how = "the policy of chain" if self.by_policy else "a rule in chain"
        return f"{how} {self.chain} of table {self.family} {self.table}"


class Trace:
    """Of what enters and leaves by `link`, while it is open. `run` puts more rules into the same table."""

    def __init__(self, link: str) -> None:
        self._session = Session()
        self.table = f"{SCRATCH}{os.getpid()}"
        self._heard = netlink.netfilter_socket()
        self._heard.bind((0, 0))
        self._heard.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        if self._session.transact([make_table(OWNER, self.table)]):
            self._session.commit([make_table(0, self.table)], "a table")
        for hook, name in (("prerouting", "iifname"), ("output", "oifname")):
            self.run(
                f"add chain inet {{table}} {hook} {{ type filter hook {hook} priority {FIRST}; }}",
                f'add rule inet {{table}} {hook} {name} "{link}" meta nftrace set 1',
            )

    def run(self, *commands: str) -> None:
        """nft commands in which `{table}` is ours."""
        self._session.run("\n".join(command.replace("{table}", self.table) for command in commands))

    def drops(self, patience: Seconds = 0.1) -> list[Dropping]:
        """Every drop that was traced since the last time."""
        deadline = time.monotonic() + patience
        found = []
        while (left := deadline - time.monotonic()) > 0:
            self._heard.settimeout(left)
            try:
                data = self._heard.recv(1 << 16)
            except (TimeoutError, OSError):
                break
            found += [*read(data)]
        return list(dict.fromkeys(found))

    def close(self) -> None:
        self._heard.close()
        try:
            self._session.run(f"delete table inet {self.table}")
        finally:
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(data: bytes) -> Iterator[Dropping]:
    """The drops in one datagram of trace messages."""
    for message in netlink.messages(data):
        if message.kind != netlink.SUBSYSTEM << 8 | _TRACE:
            continue
        found = netlink.attributes(message.payload, 4)
        kind = int.from_bytes(found.get(_TYPE, b""), "big")
        verdict = netlink.attributes(found.get(_VERDICT, b"")).get(1)
        decided = found.get(_POLICY) if kind == _BY_POLICY else verdict if kind == _BY_RULE else None
        if decided is not None and int.from_bytes(decided, "big") == _DROP:
            family = _FAMILIES.get(message.payload[0], str(message.payload[0]))
            table, chain = netlink.string(found.get(_TABLE, b"")), netlink.string(found.get(_CHAIN, b""))
            yield Dropping(family, table, chain, kind == _BY_POLICY)


def legacy_tables() -> list[str]:
    """Tables of the old iptables, whose rules no trace shows."""
    found: list[str] = []
    for name in ("ip_tables_names", "ip6_tables_names"):
        try:
            lines = Path("/proc/net", name).read_text().splitlines()
            found += [f"{name.partition('_')[0]} {line}" for line in lines]
        except OSError:
            continue
    return found
