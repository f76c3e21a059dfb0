"""libnftables through ctypes: readable rule text in, one transaction out, on a netlink socket that can be shared.

The kernel knows the owner of a table by its netlink port, so whatever else edits the table must use the very socket
that libnftables opened. It has no call that tells; the socket is found as the file descriptor that its context adds.
One context belongs to one thread.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from pathlib import Path

from dnsguard.core.errors import KernelError, MissingFeatureError
from dnsguard.enforce.nftables.netlink import NETLINK_NETFILTER

_SO_PROTOCOL, _SO_DOMAIN = 38, 39
_ATTEMPTS = 20


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise MissingFeatureError("libnftables.so.1 is missing: install the package libnftables1") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    library.nft_ctx_buffer_error.argtypes = library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
    library.nft_ctx_get_error_buffer.restype = library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.argtypes = library.nft_ctx_get_output_buffer.argtypes = [ctypes.c_void_p]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


def _netfilter_sockets() -> dict[int, int]:
    """Inode -> file descriptor of this process's netfilter netlink sockets."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        descriptor = int(entry.name)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISSOCK(status.st_mode) and _is_netfilter(descriptor):
                found[status.st_ino] = descriptor
        except OSError:
            continue  # closed by another thread since the folder was read
    return found


def _is_netfilter(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return (
            copy.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN) == socket.AF_NETLINK
            and copy.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL) == NETLINK_NETFILTER
        )


class Libnftables:
    """One context. `socket` is a duplicate of its netlink socket: the same port, to be used from the same thread."""

    def __init__(self) -> None:
        self._library = _load()
        for _ in range(_ATTEMPTS):
            if self._open():
                return
            self._library.nft_ctx_free(self._context)
        raise KernelError("libnftables' own netlink socket cannot be told from others")

    def _open(self) -> bool:
        before = _netfilter_sockets()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise KernelError("libnftables made no context")
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)
        # Some versions open the socket with the context, others with the first command. This one fails, at no cost:
        # a `list` would fetch every element of every table.
        self._library.nft_run_cmd_from_buffer(self._context, b"delete chain inet dnsguard_no_such_table none")
        self._library.nft_ctx_get_error_buffer(self._context)  # reading it empties it
        new = [descriptor for inode, descriptor in _netfilter_sockets().items() if inode not in before]
        if len(new) != 1:  # another thread opened one at the same moment
            return False
        self.socket = socket.socket(fileno=os.dup(new[0]))
        return True

    def run(self, commands: str) -> None:
        """Run a text of nft commands as one transaction. Raises KernelError with the first complaint."""
        if self._library.nft_run_cmd_from_buffer(self._context, commands.encode()) != 0:
            complaint = self._library.nft_ctx_get_error_buffer(self._context).decode("utf-8", "replace")
            raise KernelError(f"nftables refused: {' '.join(complaint.split())[:500] or 'no reason given'}")

    def close(self) -> None:
        self.socket.close()
        self._library.nft_ctx_free(self._context)
