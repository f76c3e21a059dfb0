"""Programs on a link by a clsact qdisc and direct-action filters, on every kernel.

Ours have preference 1 and one of two handles: a filter with a new handle goes before the others of its preference, so
that the two take turns when it has to be put first again. A qdisc that dnsguard made is told from another's by a mark
on the bpffs, `links/<number of the link>-clsact`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dnsguard.core.errors import KernelError
from dnsguard.enforce.bpf import syscall
from dnsguard.enforce.bpf.hooks import HOOKS, Hook
from dnsguard.enforce.nftables import netlink

HANDLES = (0xD95, 0xD96)
PREFERENCE = 1
_TITLE = "dnsguard"
_ALL_PROTOCOLS = 3
_GET_FILTER = 46
_KIND, _OPTIONS, _CHAIN = 1, 2, 11
_NAME, _PROGRAM = 7, 11
_TCMSG = struct.Struct("=BxxxiIII")
_TAKEN = (errno.EINVAL, errno.EEXIST, errno.EOPNOTSUPP, errno.ENOENT)
"""What a filter is refused with when one of another kind has its preference, or the qdisc is no clsact."""
_ABSENT = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


class Filter(NamedTuple):
    """A filter on a hook; those of another kind than bpf have program 0."""

    preference: int
    handle: int
    kind: str
    name: str
    program: int

    @property
    def ours(self) -> bool:
        """By its place: whoever put his program there has put it in place of ours."""
        return (self.preference, self.kind) == (PREFERENCE, "bpf") and self.handle in HANDLES


class Clsact:
    """`programs`: file descriptors by name. Used in the thread that made it. See `hooks.Way`."""

    def __init__(self, programs: Mapping[str, int], bpffs: Path) -> None:
        self._programs = programs
        self._numbers = {name: syscall.prog_info(fd).number for name, fd in programs.items()}
        self._tc = _Tc(bpffs / "links")

    def put_first(self, link: int, hook: Hook) -> str | None:
        found = self._tc.filters(link, hook)
        ours = [each for each in found if each.ours]
        for each in ours[1:]:  # left by a process that ended while it put the first there
            self._tc.delete(link, hook, each.handle)
        wrong = self._wrong(found, ours, hook)
        if not ours:
            self._replace(link, hook, HANDLES[0])
        elif found[0] != ours[0]:
            self._replace(link, hook, _other(ours[0].handle))
            self._tc.delete(link, hook, ours[0].handle)
        elif wrong is not None:
            self._replace(link, hook, ours[0].handle)
        _refuse_tcx(link, hook)
        return wrong

    def _wrong(self, found: list[Filter], ours: list[Filter], hook: Hook) -> str | None:
        if not ours:
            return "was gone"
        if found[0] != ours[0]:
            return f"was behind the {found[0].kind} filter {found[0].name or hex(found[0].handle)}"
        if ours[0].program != self._numbers[hook.program]:
            return f"was program {ours[0].program}"
        return None

    def _replace(self, link: int, hook: Hook, handle: int) -> None:
        self._tc.have_qdisc(link)
        try:
            self._tc.replace(link, hook, handle, self._programs[hook.program])
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise KernelError(f"tc preference {PREFERENCE} is taken by another kind of filter or qdisc") from error

    def take_off(self, link: int) -> None:
        self._tc.clean(link)

    def attached(self) -> set[int]:
        return {link for link, _ in socket.if_nameindex() if self._has_ours(link)}

    def _has_ours(self, link: int) -> bool:
        with suppress(OSError):  # gone, or without a qdisc
            return any(each.ours for hook in HOOKS for each in self._tc.filters(link, hook))
        return False

    def sweep(self) -> None:
        self._tc.sweep()

    def close(self) -> None:
        self._tc.close()


def _refuse_tcx(link: int, hook: Hook) -> None:
    with suppress(OSError):  # no tcx on this kernel
        if before := syscall.prog_query(link, hook.tcx):
            raise KernelError(f"program {before[0].program} stands before {hook.program} by tcx")


def _other(handle: int) -> int:
    return HANDLES[1 - HANDLES.index(handle)]


class _Tc:
    """Filters and qdiscs of this thread's network namespace. Raises OSError."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks
        self._route = IPRoute()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def filters(self, link: int, hook: Hook) -> list[Filter]:
        """In the order that packets meet them. pyroute2 does not read which program a filter has."""
        self._sequence += 1
        body = _TCMSG.pack(0, link, 0, hook.clsact, 0)
        flags = netlink.REQUEST | netlink.DUMP
        self._socket.send(netlink.message(_GET_FILTER, flags, self._sequence, body))
        return [each for payload in self._replies() if (each := _filter(payload)) is not None]

    def _replies(self) -> Iterator[bytes]:
        while True:
            for each in netlink.messages(self._socket.recv(1 << 16)):
                if each.sequence != self._sequence:
                    continue
                if each.kind == netlink.DONE:
                    return
                if each.kind == netlink.ERROR:
                    number = netlink.error_number(each.payload)
                    raise OSError(number, os.strerror(number))
                yield each.payload

    def _ask(self, command: str, kind: str, link: int, handle: int = 0, **options: Any) -> None:
        try:
            self._route.tc(command, kind, link, handle, **options)
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error

    def replace(self, link: int, hook: Hook, handle: int, program: int) -> None:
        options = {"fd": program, "name": f"{_TITLE} {hook.program}", "class_id": 1, "direct_action": True}
        self._ask("replace-filter", "bpf", link, handle, **_where(hook), **options)

    def delete(self, link: int, hook: Hook, handle: int) -> None:
        with _absent():
            self._ask("del-filter", "bpf", link, handle, **_where(hook))

    def _mark(self, link: int) -> Path:
        return self._marks / f"{link}-clsact"

    def have_qdisc(self, link: int) -> None:
        try:
            self._ask("add", "clsact", link)
        except FileExistsError:
            return
        self._marks.mkdir(mode=0o700, exist_ok=True)
        fd = syscall.create_map(syscall.ARRAY, "clsact", 4, 4)
        try:
            with suppress(FileExistsError):
                syscall.pin(fd, self._mark(link))
        finally:
            os.close(fd)

    def clean(self, link: int) -> int:
        """Our filters, and the qdisc when it is ours and nobody else's filter is in it; how many filters that were."""
        removed = 0
        with _absent():
            for hook in HOOKS:
                for each in self.filters(link, hook):
                    if each.ours and each.name.startswith(_TITLE):
                        self.delete(link, hook, each.handle)
                        removed += 1
            if self._mark(link).exists() and not any(self.filters(link, hook) for hook in HOOKS):
                self._ask("del", "clsact", link)
        self._mark(link).unlink(missing_ok=True)
        return removed

    def links(self) -> list[int]:
        return [each["index"] for each in self._route.get_links()]

    def sweep(self) -> None:
        for mark in self._marks.glob("*-clsact"):
            try:
                socket.if_indextoname(int(mark.name.partition("-")[0]))
            except OSError:
                mark.unlink(missing_ok=True)

    def close(self) -> None:
        self._route.close()
        self._socket.close()


def _where(hook: Hook) -> dict[str, int]:
    return {"parent": hook.clsact, "prio": PREFERENCE, "protocol": _ALL_PROTOCOLS}


@contextmanager
def _absent() -> Iterator[None]:
    """What is to be removed may be gone already."""
    try:
        yield
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def _filter(payload: bytes) -> Filter | None:
    """None: no filter but the place of some, or of a chain that packets do not come to by themselves."""
    _, _, handle, _, info = _TCMSG.unpack_from(payload)
    found = netlink.attributes(payload, _TCMSG.size)
    if not handle or any(found.get(_CHAIN, b"")):
        return None
    kind = netlink.string(found.get(_KIND, b""))
    options = netlink.attributes(found.get(_OPTIONS, b"")) if kind == "bpf" else {}
    program = int.from_bytes(options.get(_PROGRAM, b""), sys.byteorder)
    return Filter(info >> 16, handle, kind, netlink.string(options.get(_NAME, b"")), program)


def filters_of(link: int, hook: Hook) -> list[Filter]:
    """In the order that packets meet them. Raises OSError: no such link, or one without such a qdisc."""
    tc = _Tc(Path())
    try:
        return tc.filters(link, hook)
    finally:
        tc.close()


def remove_all(bpffs: Path) -> int:
    """Clean every link of this network namespace; how many filters were ours."""
    tc = _Tc(bpffs / "links")
    try:
        removed = sum(tc.clean(link) for link in tc.links())
        tc.sweep()
        return removed
    finally:
        tc.close()
