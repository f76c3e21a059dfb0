"""Where on a pod link the programs run, in the words of either way to attach."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from dnsguard.enforce.bpf.syscall import TCX_EGRESS, TCX_INGRESS


class Hook(NamedTuple):
    """`tcx` is an attach type, `clsact` a parent of filters."""

    name: str
    program: str
    tcx: int
    clsact: int


INGRESS = Hook("ingress", "from_pod", TCX_INGRESS, 0xFFFFFFF2)
EGRESS = Hook("egress", "to_pod", TCX_EGRESS, 0xFFFFFFF3)
HOOKS = (INGRESS, EGRESS)


class Way(Protocol):
    """A way to have a program on a link. All but `close` raise OSError; ENODEV: the link is gone."""

    def put_first(self, link: int, hook: Hook) -> str | None:
        """Have the program there, before every other; returns what was wrong and is right now.

        Without a moment of none where one of ours is there. Raises KernelError when another cannot be passed.
        """

    def take_off(self, link: int) -> None:
        """Leave no trace on the link; it may be gone."""

    def attached(self) -> set[int]:
        """The links on which there is anything of ours, an earlier process's too."""

    def sweep(self) -> None:
        """Remove what is pinned for links that are gone."""

    def close(self) -> None: ...
