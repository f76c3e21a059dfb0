"""What this kernel has of what dnsguard can use: each thing is tried, in a network namespace made for it.

`found` needs root and leaves this process in that namespace.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from dnsguard.core.errors import DnsguardError
from dnsguard.enforce.bpf import syscall
from dnsguard.enforce.bpf.call import attribute, call
from dnsguard.enforce.bpf.libbpf import Object
from dnsguard.enforce.bpf.load import load, shipped
from dnsguard.enforce.bpf.tcx import has_tcx
from dnsguard.enforce.nftables.probe import probe
from dnsguard.enforce.nftables.session import Session

_CLONE_NEWNET = 0x40000000
_MAP_CREATE, _UPDATE_BATCH = 0, 26
_NO_PREALLOC = 1
_VERIFIER_STATISTICS = 4
_FRAME = bytes(12) + b"\x88\xb5" + bytes(50)
"""Of a protocol for experiments: no program does anything with it."""


def found() -> dict[str, str]:
    """By the name of the feature: `yes`, `no`, or a number."""
    with suppress(ValueError):  # before 5.11 maps count as locked memory
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    abilities = probe(Session())
    tried = {
        "nft table with an owner": abilities.own,
        "nft re-adding refreshes": abilities.refreshes,
        "tcx": has_tcx(),
        "ring buffer": _works(lambda: _map(syscall.RINGBUF, 0, 0, 4096)),
        "batches, hash": _works(lambda: _batch(syscall.HASH)),
        "batches, LPM": _works(lambda: _batch(syscall.LPM_TRIE)),
        "test runs": _works(_test_run),
        "kernel BTF": Path("/sys/kernel/btf/vmlinux").exists(),
    }
    told = {name: "yes" if answer else "no" for name, answer in tried.items()}
    return told | {f"`{name}`, instructions": count for name, count in verified().items()}


def _works(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except (OSError, DnsguardError):
        return False
    return True


def _map(kind: int, key: int, value: int, entries: int, flags: int = 0) -> None:
    os.close(call(_MAP_CREATE, attribute("IIIII", kind, key, value, entries, flags)))


def _batch(kind: int) -> None:
    """Write two elements at once."""
    keys, values = (ctypes.create_string_buffer(octets, len(octets)) for octets in (_keys(), bytes(16)))
    made = call(_MAP_CREATE, attribute("IIIII", kind, 8, 8, 4, _NO_PREALLOC))
    try:
        where = ctypes.addressof(keys), ctypes.addressof(values)
        call(_UPDATE_BATCH, attribute("QQQQIIQQ", 0, 0, *where, 2, made, 0, 0))
    finally:
        os.close(made)


def _keys() -> bytes:
    """Two whole addresses, as an LPM map has them; to a hash any octets will do."""
    return b"".join((32).to_bytes(4, "little") + bytes([10, 0, 0, n]) for n in (1, 2))


def _test_run() -> None:
    with closing(load(None, {})) as loaded:
        syscall.test_run(loaded.programs["from_pod"], _FRAME)


def verified() -> dict[str, str]:
    """How many instructions the verifier went through for each program; `refused` when it took none of them."""
    library = ctypes.CDLL("libbpf.so.1")
    with closing(Object(shipped())) as opened:
        logs = {name: ctypes.create_string_buffer(1 << 16) for name in opened.programs}
        for name, log in logs.items():
            program = ctypes.c_void_p(opened.programs[name])
            library.bpf_program__set_log_buf(program, log, ctypes.c_size_t(len(log)))
            library.bpf_program__set_log_level(program, _VERIFIER_STATISTICS)
        with suppress(OSError):
            opened.load()
            return {name: _processed(log.value.decode()) for name, log in sorted(logs.items())}
        return dict.fromkeys(sorted(logs), "refused")


def _processed(log: str) -> str:
    told = re.search(r"processed (\d+) insns", log)
    return f"{int(told[1]):,}" if told else "yes"
