"""The shipped object into the kernel, over the maps that an earlier process left.

Blocks for some tens of milliseconds, more where maps are copied into ones of another size.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dnsguard.core.errors import KernelError, MissingFeatureError, OldKernelError
from dnsguard.enforce.bpf import pins
from dnsguard.enforce.bpf.libbpf import Object
from dnsguard.enforce.bpf.syscall import Map
from dnsguard.enforce.privilege import holds

OBJECT = "dnsguard.bpf.o"
NEEDED = ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The maps and programs (file descriptors) of one process. `kept`: what is in the maps is of an earlier one; those
    in `same` are its very maps, which its programs go on writing to."""

    maps: Mapping[str, Map]
    programs: Mapping[str, int]
    kept: bool
    same: frozenset[str]

    def close(self) -> None:
        """What is pinned or attached stays in the kernel."""
        for each in self.maps.values():
            each.close()
        for fd in self.programs.values():
            os.close(fd)


def shipped() -> bytes:
    """The object, as it was built."""
    return (resources.files("dnsguard.enforce.bpf") / OBJECT).read_bytes()


def load(bpffs: Path | None, sizes: Mapping[str, int], octets: bytes | None = None) -> Loaded:
    """Load the programs, with maps of `sizes` (most entries, by map) pinned under `bpffs`, or not pinned.

    Maps that an earlier process pinned are taken over; one of another size is made anew with the elements of the old.
    Maps of another layout are removed. Raises ValueError for a size of no map, MissingFeatureError when libbpf, the
    privilege or a feature of the kernel is missing (with the verifier's log), KernelError when the maps cannot be made
    or the object cannot be read. What an earlier process left is then as it was.
    """
    with closing(Object(shipped() if octets is None else octets)) as found:
        _size(found, sizes)
        if bpffs is None:
            return _load(found, {}, kept=False)
        pins.prepare(bpffs)
        with closing(pins.PinnedMaps(bpffs, {name: found.shape(name) for name in _pinnable(found)})) as earlier:
            loaded = _load(found, earlier.same, kept=earlier.kept)
            try:
                earlier.keep(loaded.maps)
            except BaseException:
                loaded.close()
                raise
            return loaded


def _pinnable(found: Object) -> list[str]:
    return [name for name in found.maps if "." not in name]  # libbpf's own, for constants, have a dot


def _size(found: Object, sizes: Mapping[str, int]) -> None:
    for name, entries in sizes.items():
        if name not in found.maps:
            raise ValueError(f"there is no map {name}: it is one of {', '.join(sorted(found.maps))}")
        found.size(name, entries)


def _load(found: Object, earlier: Mapping[str, Map], kept: bool) -> Loaded:
    for name, each in earlier.items():
        found.reuse(name, each.fd)
    try:
        found.load()
    except OSError as error:
        raise _refusal(error, found.log) from error
    maps = {name: Map(found.map_fd(name), name) for name in _pinnable(found)}
    return Loaded(maps, {name: found.program_fd(name) for name in found.programs}, kept, frozenset(earlier))


def _refusal(error: OSError, log: str) -> MissingFeatureError | KernelError:
    if missing := [one for one in NEEDED if not holds(one)]:
        # Without CAP_PERFMON the verifier refuses single instructions, and its log leads nowhere.
        return MissingFeatureError(
            f"the eBPF program needs {', '.join(missing)}: run as root, or give the unit's AmbientCapabilities= and "
            f"CapabilityBoundingSet= all of {' '.join(NEEDED)}"
        )
    if error.errno == errno.EPERM:
        return MissingFeatureError(
            "bpf(2) is not permitted: a seccomp filter (SystemCallFilter=) has to let it, and before 5.11 the unit "
            f"needs LimitMEMLOCK=infinity\n{log}"
        )
    if error.errno == errno.ENOMEM:
        return KernelError(f"no memory for the eBPF maps: make `tables` smaller\n{log}")
    return OldKernelError(
        f"the kernel does not take the eBPF program ({os.strerror(error.errno or 0)}); 5.10 is the oldest it is made "
        f"for, `enforcement.ebpf: Off` does without\n{log}"
    )
