"""What this kernel does, found by trying it in a scratch table; versions are not asked."""

from __future__ import annotations

import os
from typing import NamedTuple

from dnsguard.core.errors import KernelError
from dnsguard.enforce.nftables import elements, netlink
from dnsguard.enforce.nftables.netlink import Part
from dnsguard.enforce.nftables.session import OWNER, PERSIST, Session, delete_table, make_table

_KEY = bytes(8)


class Abilities(NamedTuple):
    """`own`: a table can have an owner and outlive it (6.9). `refreshes`: a re-added element takes its new timeout,
    longer or shorter (6.12); before, it is left as it was."""

    own: bool
    refreshes: bool


def probe(session: Session) -> Abilities:
    """Leaves nothing behind. Raises KernelError where no table can be made at all."""
    name = f"dnsguard_probe_{os.getpid()}"
    own = not session.transact([make_table(OWNER | PERSIST, name)])
    if not own:
        session.commit([make_table(0, name)], "a table")
    try:
        session.run(f"add set inet {name} probe {{ type ipv4_addr . ipv4_addr; flags timeout; }}")
        _write(session, name, 60_000)
        longer = _write(session, name, 600_000)
        shorter = _write(session, name, 30_000)
        return Abilities(own, longer > 500_000 and 0 < shorter <= 30_000)
    finally:
        session.commit([delete_table(name)], "to delete the scratch table")


def _write(session: Session, table: str, ms: int) -> int:
    """Add the element, and tell the milliseconds it has left."""
    where = netlink.text(1, table) + netlink.text(2, "probe")
    body = where + netlink.nested(3, elements.timed(_KEY, ms))
    session.commit([Part(netlink.NEWSETELEM, netlink.CREATE, body)], "a timed element")
    for payload in session.dump(netlink.GETSETELEM, where):
        found = netlink.attributes(netlink.attributes(netlink.attributes(payload)[3])[1])
        return elements.remaining_ms(found)
    raise KernelError("a timed element was added and is not there")
