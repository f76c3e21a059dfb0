"""What is in the table, by names: chains with the number of their rules, and sets. Dumped raw, without any element."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dnsguard.enforce.nftables import netlink
from dnsguard.enforce.nftables.netlink import Part, string
from dnsguard.enforce.nftables.session import TABLE, TABLE_ATTRIBUTE, Session


class Inventory(NamedTuple):
    chains: dict[str, int]
    sets: frozenset[str]


def inventory(session: Session) -> Inventory:
    """Empty when there is no table. Anonymous sets, the `{ ... }` inside rules, are left out."""
    chains = {string(found.get(3, b"")): 0 for found in _ours(session, netlink.GETCHAIN)}
    for found in _ours(session, netlink.GETRULE):
        chain = string(found.get(2, b""))
        chains[chain] = chains.get(chain, 0) + 1
    return Inventory(chains, sets(session))


def sets(session: Session) -> frozenset[str]:
    """The sets alone. Rules are many: dumping those of 1,000 pods would keep the writer for 0.1 s and more."""
    names = (string(found.get(2, b"")) for found in _ours(session, netlink.GETSET))
    return frozenset(name for name in names if not name.startswith("__"))


def _ours(session: Session, kind: int) -> list[dict[int, bytes]]:
    objects = map(netlink.attributes, session.dump(kind, TABLE_ATTRIBUTE))
    return [found for found in objects if string(found.get(1, b"")) == TABLE]


def deletions(chains: Iterable[str], sets: Iterable[str]) -> list[Part]:
    """Messages that delete chains and sets. Every chain is emptied first, for they may go to each other."""
    doomed = list(chains)
    return [
        *(Part(netlink.DELRULE, 0, TABLE_ATTRIBUTE + netlink.text(2, name)) for name in doomed),
        *(Part(netlink.DELCHAIN, 0, TABLE_ATTRIBUTE + netlink.text(3, name)) for name in doomed),
        *(Part(netlink.DELSET, 0, TABLE_ATTRIBUTE + netlink.text(2, name)) for name in sets),
    ]
