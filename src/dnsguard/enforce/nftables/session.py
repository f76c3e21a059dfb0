"""The one netlink port that owns dnsguard's table: text by libnftables, packed transactions and dumps beside it.

A Session belongs to the writer's thread. A transaction is all or nothing: it is believed only when its own
acknowledgement was read; messages of earlier transactions that were left unread are recognised by their sequence
numbers and passed over.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dnsguard.core.errors import KernelError
from dnsguard.enforce.nftables import netlink
from dnsguard.enforce.nftables.libnftables import Libnftables
from dnsguard.enforce.nftables.netlink import Part

TABLE = "dnsguard"
TABLE_ATTRIBUTE = netlink.text(1, TABLE)
OWNER, PERSIST = 0x2, 0x4
BATCH = -1
"""Stands for the transaction itself in what `transact` returns."""

_SNDBUFFORCE, _RCVBUFFORCE = 32, 33
_SOL_NETLINK, _CAP_ACK = 270, 10
_BUFFER = 32 << 20
_FIRST_SEQUENCE = 0x40000000
"""libnftables counts from 0 on the same socket."""


class TableState(NamedTuple):
    """What the kernel says of our table: its flags and the port of its owner (0: none)."""

    flags: int
    owner: int


class Session:
    """Owns the port. Raises KernelError when the kernel refuses what has to work."""

    def __init__(self) -> None:
        self._nft = Libnftables()
        self._socket = self.socket = self._nft.socket
        enlarge(self._socket)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self.port: int = self._socket.getsockname()[0]
        self._sequence = _FIRST_SEQUENCE
        self._begin = netlink.generic(0, netlink.SUBSYSTEM)
        self._dumps = netlink.netfilter_socket()
        self._dumps.bind((0, 0))
        self._dumps.settimeout(10)

    def run(self, commands: str) -> None:
        """One transaction of nft commands as text."""
        if commands:
            self._nft.run(commands)

    def transact(self, parts: Sequence[Part]) -> dict[int, int]:
        """Send one transaction. Returns nothing when it is committed, else errno by index of the refused part
        (or BATCH); then none of it has happened, except after ENOBUFS and EIO, where it is not known."""
        first = self._sequence + 1
        data = self._packed(parts, first)
        try:
            self._socket.send(data, socket.MSG_DONTWAIT)  # the kernel commits inside this call
        except OSError as error:
            return {BATCH: error.errno or errno.EIO}
        return self._outcome(first, first + len(parts) - 1)

    def _packed(self, parts: Sequence[Part], first: int) -> bytes:
        begin, end = first - 1, first + len(parts)
        self._sequence = end + 1 if end < 0xF0000000 else _FIRST_SEQUENCE
        packed = [netlink.message(netlink.BATCH_BEGIN, netlink.REQUEST, begin, self._begin)]
        last = len(parts) - 1
        for index, (kind, flags, body) in enumerate(parts):
            flags |= netlink.REQUEST | (netlink.ACK if index == last else 0)
            packed.append(netlink.table_message(kind, flags, first + index, body))
        packed.append(netlink.message(netlink.BATCH_END, netlink.REQUEST, end, self._begin))
        return b"".join(packed)

    def _outcome(self, first: int, last: int) -> dict[int, int]:
        refused: dict[int, int] = {}
        acknowledged = False
        while True:
            try:
                data = self._socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:  # ENOBUFS: an answer was lost
                refused[BATCH] = error.errno or errno.EIO
                continue
            for kind, _, sequence, payload in netlink.messages(data):
                if kind != netlink.ERROR or not first - 1 <= sequence <= last + 1:
                    continue  # left over from an earlier transaction
                number = netlink.error_number(payload)
                if number:
                    refused[sequence - first if first <= sequence <= last else BATCH] = number
                elif sequence == last:
                    acknowledged = True
            if acknowledged and not refused:
                return {}  # the kernel queues nothing behind the last acknowledgement of a good transaction
        return refused or {BATCH: errno.EIO}

    def commit(self, parts: Sequence[Part], asked: str) -> None:
        """A transaction that has to succeed. Raises KernelError that names `asked`."""
        if parts and (refused := self.transact(parts)):
            raise KernelError(f"the kernel refused {asked}: {reason(refused)}")

    def dump(self, kind: int, body: bytes = b"") -> Iterator[bytes]:
        """The attributes of every object of a kind, without libnftables (which would fetch every element first).

        Dumped again, up to five times, when something changed meanwhile; the last attempt is taken as it is, for
        changes of other tables interrupt dumps of ours too.
        """
        for attempt in range(5):
            found, interrupted = self._dump_once(kind, body)
            if not interrupted or attempt == 4:
                break
        yield from found

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        try:
            return self._dump_now(kind, body)
        except OSError as error:  # ENOBUFS, or no answer in time
            raise KernelError(f"a dump failed: {error}") from error

    def _dump_now(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        sequence = self._sequence
        self._dumps.send(netlink.table_message(kind, netlink.REQUEST | netlink.DUMP, sequence, body))
        found: list[bytes] = []
        interrupted = False
        while True:
            for message in netlink.messages(self._dumps.recv(1 << 18)):
                if message.sequence != sequence:
                    continue
                interrupted |= bool(message.flags & netlink.DUMP_INTERRUPTED)
                if message.kind == netlink.DONE:
                    return found, interrupted
                if message.kind == netlink.ERROR:
                    return _dump_refused(message.payload), False
                found.append(message.payload[4:])

    def table(self) -> TableState | None:
        """Our table as it is, None when there is none."""
        for payload in self.dump(netlink.GETTABLE):
            found = netlink.attributes(payload)
            if netlink.string(found.get(1, b"")) == TABLE:
                return TableState(*(int.from_bytes(found.get(kind, b""), "big") for kind in (2, 7)))
        return None

    def claim(self, own: bool) -> bool:
        """Make the table, or take over one that is there. Returns whether it is ours alone.

        A table without the persist flag cannot be taken into ownership (net/netfilter/nf_tables_api.c,
        nf_tables_updtable); it is used as it is.
        """
        state = self.table()
        if state and state.owner not in (0, self.port):
            raise KernelError(f"table inet {TABLE} belongs to another process (netlink port {state.owner})")
        if own and (state is None or state.flags & PERSIST):
            self.commit([make_table(OWNER | PERSIST)], f"to own table inet {TABLE}")
            return True
        if state is None:
            self.commit([make_table(0)], f"table inet {TABLE}")
        return False

    def close(self) -> None:
        """Give up the port. A persistent table stays in force."""
        self._dumps.close()
        self._nft.close()


def make_table(flags: int, name: str = TABLE) -> Part:
    body = netlink.text(1, name) + netlink.attribute(2, struct.pack(">I", flags))
    return Part(netlink.NEWTABLE, netlink.CREATE, body)


def delete_table(name: str = TABLE) -> Part:
    return Part(netlink.DELTABLE, 0, netlink.text(1, name))


def enlarge(port: socket.socket) -> None:
    """Let the largest transaction, and the answers to it, pass at once."""
    for option in (_SNDBUFFORCE, _RCVBUFFORCE):
        port.setsockopt(socket.SOL_SOCKET, option, _BUFFER)


def reason(refused: dict[int, int]) -> str:
    number = next(iter(refused.values()))
    return f"{errno.errorcode.get(number, str(number))} in {len(refused)} place(s)"


def _dump_refused(payload: bytes) -> list[bytes]:
    number = netlink.error_number(payload)
    if number in (0, errno.ENOENT):  # the table or set is gone: nothing to list
        return []
    raise KernelError(f"the kernel refused a dump: {errno.errorcode.get(number, number)}")
