"""What the kernel has recorded in Audit, read from its sets: the packets that no rule accepted and that passed."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from dnsguard.core.model import Address
from dnsguard.enforce.denials import Audited
from dnsguard.enforce.nftables import elements
from dnsguard.enforce.nftables.denied import reason_of
from dnsguard.enforce.nftables.elements import Key
from dnsguard.enforce.nftables.session import Session


def audited(session: Session, names: Iterable[str]) -> list[Audited]:
    """The records in those of these sets that hold any. One ends an hour after its last packet."""
    return [
        record(key, reason_of(rest.removeprefix("portless_")[:-2])[1], packets)
        for kind, _, rest in (name.partition("_") for name in sorted(names))
        if kind == "audited"
        for key, packets in elements.counters(session, f"{kind}_{rest}")
        if key != elements.EVERY
    ]


def record(key: Key, rule: int | None, packets: int) -> Audited:
    """Each part of a key fills whole words: two addresses, the protocol, and the port where there is one."""
    width = 4 if len(key) in (12, 16) else 16
    port = struct.unpack_from(">H", key, 2 * width + 4)[0] if len(key) > 2 * width + 4 else 0
    return Audited(Address(key[:width]), Address(key[width : 2 * width]), key[2 * width], port, rule, packets)
