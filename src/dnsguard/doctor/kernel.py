"""The kernel and nftables: what they can do, found by trying it in a scratch table."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from dnsguard.core.errors import DnsguardError, KernelError
from dnsguard.doctor.findings import Finding, ok, problem, unseen, warning
from dnsguard.doctor.node import Node
from dnsguard.enforce.nftables import netlink
from dnsguard.enforce.nftables.probe import probe
from dnsguard.enforce.nftables.session import OWNER, Session, delete_table, make_table
from dnsguard.enforce.privilege import holds

OLDEST: Final = (5, 10)
TRIED: Final = {
    "meta l4proto udp tproxy ip to :1": "nft_tproxy",
    "fib saddr . iif oif exists": "nft_fib_inet",
    "ct state established": "nft_ct",
    "notrack": "nft_ct",
    "log group 1": "nft_log",
    "limit rate 1/second": "nft_limit",
}
"""What rules are made of -> the module that has it."""
SCRATCH: Final = "dnsguard_doctor_"
_ULOG_CONFIG, _BIND = 4 << 8 | 1, 1


def check_version(node: Node) -> Iterator[Finding]:
    release = os.uname().release
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers < OLDEST:
        yield problem("kernel", release, "5.10 is the oldest that dnsguard is made for: boot a newer one")
    else:
        yield ok("kernel", release)


def check_nftables(node: Node) -> Iterator[Finding]:
    """The library, every kind of expression, and what tables can do."""
    if not holds("CAP_NET_ADMIN"):
        yield unseen("nftables", "tables cannot be made without CAP_NET_ADMIN")
        return
    try:
        with closing(Session()) as session:
            yield ok("nftables", f"libnftables {_library_version()}")
            yield from _tried(session)
            yield _abilities(session)
    except DnsguardError as error:
        yield problem("nftables", str(error), "install nftables, and load the kernel module nf_tables")


def _library_version() -> str:
    """From the name of the file that was loaded: the library has no call that tells."""
    found = re.search(r"libnftables\.so\.([0-9.]+)", Path("/proc/self/maps").read_text())
    return f"(so {found[1]})" if found else ""


def _tried(session: Session) -> Iterator[Finding]:
    table = f"{SCRATCH}{os.getpid()}"
    _sweep(session)
    if session.transact([make_table(OWNER, table)]):  # before 5.12 tables have no owner, and stay when we are killed
        session.commit([make_table(0, table)], "a table")
    try:
        session.run(f"add chain inet {table} tried")
        missing = {module: text for text, module in TRIED.items() if not _takes(session, table, text)}
    finally:
        session.commit([delete_table(table)], "to delete the scratch table")
    for module, text in missing.items():
        yield problem("nftables", f"the kernel does not take `{text}`", f"modprobe {module}")
    if not missing:
        yield ok("nftables", "tproxy, fib, conntrack, log and limit are there")


def _takes(session: Session, table: str, text: str) -> bool:
    try:
        session.run(f"add rule inet {table} tried {text}")
    except KernelError:
        return False
    return True


def _abilities(session: Session) -> Finding:
    able = probe(session)
    if not able.own:
        found = "tables cannot have a persistent owner (before 6.9)"
        return warning(
            "nftables", found, "another program's `flush ruleset` opens pods for up to 100 ms: keep it from it"
        )
    return ok("nftables", "the table can be owned: nobody else can flush it")


def _sweep(session: Session) -> None:
    """Tables that a killed run left."""
    for payload in session.dump(netlink.GETTABLE):
        name = netlink.string(netlink.attributes(payload).get(1, b""))
        owner = name.removeprefix(SCRATCH)
        if owner != name and owner.isdecimal() and not Path("/proc", owner).exists():
            session.transact([delete_table(name)])


def check_nflog(node: Node) -> Iterator[Finding]:
    """The group by which nftables reports denied packets: one program alone can listen."""
    group = node.settings.interception.nflog_group
    if node.daemon is not None:
        yield ok("NFLOG", f"group {group} is the daemon's")
        return
    if not holds("CAP_NET_ADMIN"):
        yield unseen("NFLOG", f"group {group} cannot be tried without CAP_NET_ADMIN")
        return
    number = _bind(group)
    if number in (errno.EBUSY, errno.EPERM):
        yield problem("NFLOG", f"group {group} is another program's", "set interception.nflogGroup to a free number")
    elif number:
        yield problem("NFLOG", f"group {group}: {os.strerror(number)}", "modprobe nfnetlink_log")
    else:
        yield ok("NFLOG", f"group {group} is free")


def _bind(group: int) -> int:
    """The errno of listening to a group, which ends with the socket."""
    with netlink.netfilter_socket() as port:
        port.bind((0, 0))
        port.settimeout(2)
        body = netlink.generic(0, group) + netlink.attribute(1, bytes([_BIND]))
        port.send(netlink.message(_ULOG_CONFIG, netlink.REQUEST | netlink.ACK, 1, body))
        replies = netlink.messages(port.recv(65536))
        return next((netlink.error_number(one.payload) for one in replies if one.kind == netlink.ERROR), errno.EPROTO)
