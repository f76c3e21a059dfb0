"""The programs on every pod link, first in line there, and the way back.

Blocks, and is used in one thread that has no event loop (pyroute2's plain sockets refuse to work in one).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from dnsguard.core.errors import KernelError, MissingFeatureError
from dnsguard.core.model import LinkIndex
from dnsguard.enforce.bpf import clsact, pins, tcx
from dnsguard.enforce.bpf.clsact import Clsact
from dnsguard.enforce.bpf.hooks import HOOKS, Way
from dnsguard.enforce.bpf.tcx import Tcx, has_tcx

WITH_PEERS = frozenset(("veth", "netkit"))
"""Drivers of links that are pairs, one end in the node and one in the pod (ndo_get_peer_dev)."""
_SIOCGIFHWADDR = 0x8927
_SIOCETHTOOL, _ETHTOOL_DRVINFO, _DRVINFO = 0x8946, 3, 196
_ARPHRD_ETHER = 1
_LONGEST_NAME = 15
_GONE = (errno.ENODEV, errno.ENOLINK)
"""Of the link, or of the one that a bpf link was on."""


class Attachments:
    """Ours on the links that were attached. `tcx` None: where the kernel has it, else clsact.

    What an earlier process left on a link goes over to these programs without a moment of none.
    """

    def __init__(self, programs: Mapping[str, int], bpffs: Path, tcx: bool | None = None) -> None:
        self.tcx = has_tcx() if tcx is None else tcx
        self._way: Way = Tcx(programs, bpffs) if self.tcx else Clsact(programs, bpffs)
        self._way.sweep()
        self._links: dict[LinkIndex, str] = {}
        self._failed: dict[LinkIndex, tuple[str, str]] = {}

    @property
    def effective(self) -> bool:
        """Ours were first on every link when last looked at."""
        return not self._failed

    @property
    def failures(self) -> dict[str, str]:
        """Why they were not, or not at all, by the link's name. May be asked from another thread."""
        return dict(self._failed.copy().values())

    def attach(self, link: LinkIndex, name: str) -> None:
        """Put ours first on a pod link; one that is gone is none any more.

        Raises MissingFeatureError when it is no Ethernet link; KernelError when the kernel refuses, or when ours
        cannot be first: then every `verify` tries again.
        """
        try:
            require_ethernet(name)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return
        self._links[link] = name
        self._put_first(link)
        if link in self._failed:
            raise KernelError(self._failed[link][1])

    def detach(self, link: LinkIndex) -> None:
        self._links.pop(link, None)
        self._failed.pop(link, None)
        self._way.take_off(link)

    def retain(self) -> None:
        """Take off what an earlier process put on links that have not been attached by this one."""
        for link in self._way.attached() - self._links.keys():
            self._way.take_off(link)

    def verify(self) -> list[str]:
        """What was wrong, on any link, and has been put right; what could not be is in `failures`."""
        return [what for link in [*self._links] for what in self._put_first(link)]

    def _put_first(self, link: LinkIndex) -> list[str]:
        """One side that fails does not keep the other from being put right."""
        name = self._links[link]
        wrong: list[str] = []
        failures: list[str] = []
        for hook in HOOKS:
            try:
                what = self._way.put_first(link, hook)
            except KernelError as error:
                failures.append(str(error))
            except OSError as error:
                if error.errno in _GONE:
                    self.detach(link)
                    return []
                failures.append(f"{hook.program} cannot be put on {name}: {error.strerror}")
            else:
                wrong += [f"{name}: {hook.program} {what}"] if what else []
        if failures:
            self._failed[link] = name, failures[0]
        else:
            self._failed.pop(link, None)
        return wrong

    def close(self) -> None:
        """Ours stay where they are."""
        self._way.close()


def driver(name: str) -> str:
    """Of a link, as ethtool tells it; empty when there is none, or no such link."""
    told = ctypes.create_string_buffer(_ETHTOOL_DRVINFO.to_bytes(4, sys.byteorder), _DRVINFO)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack(f"{_LONGEST_NAME + 1}sP16x", os.fsencode(name)[:_LONGEST_NAME], ctypes.addressof(told))
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError:
            return ""
    return told.raw[4:36].partition(b"\0")[0].decode("ascii", "replace")


def require_ethernet(name: str) -> None:
    """The programs read a frame from its Ethernet header on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack(f"{_LONGEST_NAME + 1}s24x", os.fsencode(name)[:_LONGEST_NAME])
        answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, request)
    kind: int = struct.unpack_from("=H", answer, _LONGEST_NAME + 1)[0]
    if kind != _ARPHRD_ETHER:
        raise MissingFeatureError(
            f"{name} is no Ethernet link (type {kind}): eBPF cannot enforce there; leave it out of pods.interfaces, or "
            "set enforcement.ebpf: Off"
        )


_OF_OTHERS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


def remove_all(bpffs: Path) -> tuple[int, int]:
    """Remove every program, filter, qdisc and pin that is dnsguard's, and nothing else. The bpffs stays mounted.

    Returns from how many places programs were taken, and how many maps were pinned.
    """
    programs = tcx.remove_all(bpffs) + clsact.remove_all(bpffs)
    maps = pins.remove(bpffs)
    for folder in (bpffs / "links", bpffs / "maps"):
        with suppress(FileNotFoundError):
            folder.rmdir()
    if bpffs.is_dir() and not bpffs.is_mount():
        try:
            bpffs.rmdir()
        except OSError as error:
            if error.errno not in _OF_OTHERS:  # who makes the folder for us removes it, too
                raise
    return programs, maps
