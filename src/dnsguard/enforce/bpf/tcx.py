"""Programs on a link by tcx (6.6 and later): each held by a bpf link, pinned so that it outlives the process.

Pins are `links/<number of the link>-<hook>` under the bpffs.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dnsguard.enforce.bpf import syscall
from dnsguard.enforce.bpf.hooks import HOOKS, Hook

_LOAD_MAP = 0x18, 0x12
"""An instruction of 64 bits whose immediate is a map's descriptor: its code and registers (r2)."""
_DROP = 2


def has_tcx() -> bool:
    """Whether this kernel knows tcx: it is asked about a link that is always there."""
    try:
        syscall.prog_query(1, HOOKS[0].tcx)
    except OSError as error:
        return error.errno == errno.ENODEV
    return True


class Tcx:
    """`programs`: file descriptors by name. See `hooks.Way`."""

    def __init__(self, programs: Mapping[str, int], bpffs: Path) -> None:
        self._programs = programs
        self._numbers = {name: syscall.prog_info(fd).number for name, fd in programs.items()}
        self._folder = bpffs / "links"
        self._holders: dict[Path, int] = {}
        """Numbers of the bpf links behind the pins."""

    def put_first(self, link: int, hook: Hook) -> str | None:
        found = syscall.prog_query(link, hook.tcx)
        ours = self._holder(link, hook)
        place = next((index for index, each in enumerate(found) if each.link == ours), None)
        if place is None:
            self._create(link, hook)
            return "was gone"
        same = found[place].program == self._numbers[hook.program]
        if place > 0:
            with self._bridge(link, hook, needed=same):
                self._create(link, hook)
            return f"was behind program {found[0].program}"
        if not same:
            self._update(link, hook, self._programs[hook.program])
            return f"was program {found[0].program}"
        return None

    def _pin(self, link: int, hook: Hook) -> Path:
        return self._folder / f"{link}-{hook.name}"

    def _holder(self, link: int, hook: Hook) -> int | None:
        pin = self._pin(link, hook)
        if pin not in self._holders and (found := _held(pin)):
            self._holders[pin] = found.number
        return self._holders.get(pin)

    def _create(self, link: int, hook: Hook) -> None:
        """A new bpf link at the head, then its pin in place of the old one's, which goes."""
        pin, new = self._pin(link, hook), self._folder / f"new-{link}-{hook.name}"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        new.unlink(missing_ok=True)
        fd = syscall.link_create(self._programs[hook.program], link, hook.tcx)
        try:
            syscall.pin(fd, new)
            with _detaching(pin):
                new.rename(pin)
            self._holders[pin] = syscall.link_info(fd).number
        finally:
            os.close(fd)

    def _update(self, link: int, hook: Hook, program: int) -> None:
        fd = syscall.get_pinned(self._pin(link, hook))
        try:
            syscall.link_update(fd, program)
        finally:
            os.close(fd)

    @contextmanager
    def _bridge(self, link: int, hook: Hook, needed: bool) -> Iterator[None]:
        """The kernel takes no program twice on a link: meanwhile the old place has one that goes on to it."""
        if not needed:
            yield
            return
        table = syscall.Map(syscall.create_map(syscall.PROG_ARRAY, "bridge", 4, 4))
        table.update(bytes(4), struct.pack("=I", self._programs[hook.program]))
        bridge = syscall.load_program("bridge", _going_on(table.fd))
        try:
            self._update(link, hook, bridge)
            yield
        finally:
            os.close(bridge)
            table.close()

    def take_off(self, link: int) -> None:
        for hook in HOOKS:
            pin = self._pin(link, hook)
            self._holders.pop(pin, None)
            with _detaching(pin):
                pin.unlink(missing_ok=True)

    def attached(self) -> set[int]:
        return {int(pin.name.partition("-")[0]) for pin in self._folder.glob("*-*gress") if pin.name[0] != "n"}

    def sweep(self) -> None:
        for pin in self._folder.glob("*-*gress"):
            if (found := _held(pin)) is None or found.link == 0:
                self._holders.pop(pin, None)
                pin.unlink(missing_ok=True)

    def close(self) -> None:
        """The pins hold the programs where they are."""


@contextmanager
def _detaching(pin: Path) -> Iterator[None]:
    """What is pinned there now is off its link in the end."""
    try:
        fd = syscall.get_pinned(pin)
    except (FileNotFoundError, PermissionError):
        # Without bpf(2) the pin alone can go. It is what holds the program.
        yield
        return
    try:
        yield
        syscall.link_detach(fd)
    finally:
        os.close(fd)


def remove_all(bpffs: Path) -> int:
    """Take every pinned program off, and the pins away; how many there were."""
    found = list((bpffs / "links").glob("*-*gress"))
    for pin in found:
        with _detaching(pin):
            pin.unlink()
    return len(found)


def _held(pin: Path) -> syscall.LinkInfo | None:
    try:
        fd = syscall.get_pinned(pin)
    except FileNotFoundError:
        return None
    try:
        return syscall.link_info(fd)
    finally:
        os.close(fd)


def _going_on(table: int) -> bytes:
    """Instructions that end in the program of a table's first place, or drop the packet when there is none."""
    instructions = (
        (*_LOAD_MAP, table),
        (0, 0, 0),
        (0xB7, 3, 0),  # r3 = 0
        (0x85, 0, 12),  # bpf_tail_call
        (0xB7, 0, _DROP),  # r0 = TC_ACT_SHOT
        (0x95, 0, 0),  # exit
    )
    return b"".join(struct.pack("=BBhi", code, registers, 0, number) for code, registers, number in instructions)
