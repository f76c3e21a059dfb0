"""`python -m tests.contract.loader`: load 50,000 elements into a set again and again, until killed.

Each load is one transaction, during which no other of this network namespace proceeds. Says `loading` after the first.
"""

from __future__ import annotations

import struct
from itertools import count

from dnsguard.enforce.nftables import elements, netlink
from dnsguard.enforce.nftables.netlink import Part
from dnsguard.enforce.nftables.session import Session

TABLE = "loaded"
ELEMENTS = 50_000


def main() -> None:
    session = Session()
    session.run(f"add table inet {TABLE}\nadd set inet {TABLE} s {{ type ipv4_addr; }}")
    where = netlink.text(1, TABLE) + netlink.text(2, "s")
    packed = [elements.plain(struct.pack(">I", number)) for number in range(ELEMENTS)]
    add = [
        Part(netlink.NEWSETELEM, netlink.CREATE, where + netlink.nested(3, b"".join(packed[first : first + 1000])))
        for first in range(0, ELEMENTS, 1000)
    ]
    for turn in count():
        session.commit(add, "to load")
        session.commit([Part(netlink.DELSETELEM, 0, where)], "to empty the set")
        if turn == 0:
            print("loading", flush=True)


if __name__ == "__main__":
    main()
