"""libbpf through ctypes: an object opened, its maps sized or replaced by ones that are there, and loaded.

What libbpf says on a failure, the verifier's log with it, is kept for the error. One object is loaded at a time.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from dnsguard.core.errors import KernelError, MissingFeatureError

_WARNING = 0
_LONGEST_LOG = 16 << 20
"""Octets that libbpf lets the verifier write. Pages that it does not fill are never made."""
_LINES = 60
"""Of the log: its end tells what was refused."""
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_POINTER, _INT, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_CALLS: Mapping[str, tuple[Any, ...]] = {
    "libbpf_set_print": (_POINTER, _POINTER),
    "bpf_object__open_mem": (_POINTER, _TEXT, ctypes.c_size_t, _POINTER),
    "bpf_object__load": (_INT, _POINTER),
    "bpf_object__close": (None, _POINTER),
    "bpf_object__next_map": (_POINTER, _POINTER, _POINTER),
    "bpf_object__next_program": (_POINTER, _POINTER, _POINTER),
    "bpf_map__name": (_TEXT, _POINTER),
    "bpf_map__fd": (_INT, _POINTER),
    "bpf_map__type": (_INT, _POINTER),
    "bpf_map__key_size": (ctypes.c_uint32, _POINTER),
    "bpf_map__value_size": (ctypes.c_uint32, _POINTER),
    "bpf_map__max_entries": (ctypes.c_uint32, _POINTER),
    "bpf_map__set_max_entries": (_INT, _POINTER, ctypes.c_uint32),
    "bpf_map__reuse_fd": (_INT, _POINTER, _INT),
    "bpf_program__name": (_TEXT, _POINTER),
    "bpf_program__fd": (_INT, _POINTER),
}


class _OpenOptions(ctypes.Structure):
    """The first fields of struct bpf_object_open_opts; `size` tells libbpf how many they are."""

    _fields_ = (("size", ctypes.c_size_t), ("object_name", ctypes.c_char_p))


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise MissingFeatureError("libbpf.so.1 is missing: install the package libbpf1") from error
    for name, (result, *arguments) in _CALLS.items():
        call = getattr(library, name)
        call.restype, call.argtypes = result, arguments
    return library


def version() -> str:
    """`1.1`, or `unknown` before 0.6. Raises MissingFeatureError where there is no libbpf."""
    say = getattr(_library(), "libbpf_version_string", None)
    if say is None:
        return "unknown"
    say.restype = ctypes.c_char_p
    told: bytes = say()
    return told.decode("ascii", "replace").removeprefix("v")


class Shape(NamedTuple):
    """What a map is made as; sizes in octets."""

    type: int
    key_size: int
    value_size: int
    max_entries: int


class Object:
    """An object that is not loaded yet; `maps` and `programs` are by name. Close it in the end.

    Raises MissingFeatureError without libbpf, KernelError when the octets are no object.
    """

    def __init__(self, octets: bytes) -> None:
        self._library = _library()
        self._said: list[str] = []
        self._print = _PRINT(self._hear)
        self._library.libbpf_set_print(self._print)
        options = _OpenOptions(ctypes.sizeof(_OpenOptions), b"dnsguard")
        self._object = self._library.bpf_object__open_mem(octets, len(octets), ctypes.byref(options))
        if not self._object:
            self.close()
            raise KernelError(f"libbpf cannot read the eBPF object\n{self.log}")
        self.maps = {self._library.bpf_map__name(each).decode(): each for each in self._each("map")}
        self.programs = {self._library.bpf_program__name(each).decode(): each for each in self._each("program")}

    def _each(self, what: str) -> Iterator[int]:
        step, found = getattr(self._library, f"bpf_object__next_{what}"), None
        while found := step(self._object, found):
            yield found

    def _hear(self, level: int, form: bytes, arguments: int) -> int:
        if level == _WARNING:
            with mmap.mmap(-1, _LONGEST_LOG) as room:
                buffer = (ctypes.c_char * _LONGEST_LOG).from_buffer(room)
                # a va_list is handed over by its address on amd64 and arm64 alike
                ctypes.CDLL(None).vsnprintf(buffer, ctypes.c_size_t(_LONGEST_LOG), form, ctypes.c_void_p(arguments))
                self._said.append(ctypes.string_at(buffer).decode("utf-8", "replace"))
                del buffer
        return 0

    @property
    def log(self) -> str:
        """The end of what libbpf and the verifier had to say."""
        return "\n".join("".join(self._said).splitlines()[-_LINES:])

    def shape(self, name: str) -> Shape:
        """As the map will be made."""
        return Shape(*(getattr(self._library, f"bpf_map__{each}")(self.maps[name]) for each in Shape._fields))

    def size(self, name: str, entries: int) -> None:
        self._check(self._library.bpf_map__set_max_entries(self.maps[name], entries))

    def reuse(self, name: str, fd: int) -> None:
        """Have the programs use a map that is there already; libbpf takes a descriptor of its own."""
        self._check(self._library.bpf_map__reuse_fd(self.maps[name], fd))

    def load(self) -> None:
        """Raises OSError with the kernel's errno; `log` then says more."""
        self._check(self._library.bpf_object__load(self._object))

    def map_fd(self, name: str) -> int:
        """A descriptor that stays when this is closed; so `program_fd`."""
        return os.dup(self._library.bpf_map__fd(self.maps[name]))

    def program_fd(self, name: str) -> int:
        return os.dup(self._library.bpf_program__fd(self.programs[name]))

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(-result, errno.errorcode.get(-result, "?") + ": " + os.strerror(-result))

    def close(self) -> None:
        self._library.libbpf_set_print(None)
        if self._object:
            self._library.bpf_object__close(self._object)
