"""A node, its pods and an outside world as network namespaces of this machine, for the demo, tests and benchmarks.

Needs root, iproute2 and util-linux. A pod hangs on a routed veth as under the AWS VPC CNI or Calico: host routes on the
node, a default route through 169.254.1.1 and fe80::1 in the pod. The machine's own network namespace gets nothing, and
nothing stays behind: not after an exception, SIGINT or SIGTERM (unless the caller has a handler of its own for it,
which then sees to it); what SIGKILL leaves, the next `sweep` removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from dnsguard.core.errors import MissingFeatureError

T = TypeVar("T")

NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000
TOOLS = {"ip": "iproute2", "nsenter": "util-linux"}

GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"
"""Of every pod link's host side, as Calico has it; pods know it without asking."""
UPLINK = "uplink"
NODE_ADDRESSES = ("10.99.0.1", "fd00:99::1")
WORLD_ADDRESSES = ("10.99.0.2", "fd00:99::2")
GRACE_SECONDS = 3.0
"""How long a program started in the lab may take to end after SIGTERM."""

_open: dict[str, Lab] = {}
_handlers: dict[int, Any] = {}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the lab: its network namespace, and the name of its link on the node (its own side is `eth0`)."""

    name: str
    namespace: str
    link: str


class Lab:
    """`with Lab("demo") as lab:` makes namespaces `demo-<pid>-node` and `demo-<pid>-world`, and `pod()` more.

    Wherever a method takes a place it takes `lab.node`, `lab.world`, `pod.namespace`, or any other namespace's name.
    Raises MissingFeatureError when not root, when a tool is missing or when namespaces are not permitted.
    """

    def __init__(self, prefix: str = "dnsguard", *, rp_filter: int = 0) -> None:
        self._prefix, self._rp_filter = prefix, rp_filter
        self._namespaces: list[str] = []
        self._started: list[subprocess.Popen[str]] = []
        self._stem = ""

    def __enter__(self) -> Self:
        require(TOOLS)
        sweep(self._prefix)
        stem = f"{self._prefix}-{os.getpid()}"
        self._stem = next(
            s for s in itertools.chain([stem], (f"{stem}.{n}" for n in itertools.count(2))) if s not in _open
        )
        self.node, self.world = f"{self._stem}-node", f"{self._stem}-world"
        _register(self)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every program started in the lab and remove its namespaces, with all they hold. May be called twice."""
        _end(self._started)
        self._started.clear()
        _remove(self._namespaces)
        self._namespaces.clear()
        _unregister(self)

    # -- places ---------------------------------------------------------------------------------------------------

    def pod(self, name: str, *addresses: str, link: str | None = None) -> Pod:
        """A new pod with these addresses, each routed to its link (`veth-<name>` unless named otherwise)."""
        pod = Pod(name, f"{self._stem}-{name}", link or f"veth-{name}")
        if len(pod.link) > 15:
            raise ValueError(f"{pod.link}: an interface's name has at most 15 characters; pass link=")
        self._make([pod.namespace])
        self.link(pod, *addresses)
        return pod

    def link(self, pod: Pod, *addresses: str) -> None:
        """Give a pod that has none its link, as `pod` does."""
        self.ip(self.node, *_node_side(pod, addresses))
        self.ip(pod.namespace, *_pod_side(addresses))

    def remove_pod(self, pod: Pod) -> None:
        """Take the pod away: its link and routes are gone when this returns."""
        self.ip(self.node, f"link del {pod.link}")
        _remove([pod.namespace])
        self._namespaces.remove(pod.namespace)

    def renew_node(self) -> None:
        """The node as a reboot leaves it: a new namespace, with its uplink alone; pods are without a link."""
        links = [name for _, name in self.inside(self.node, socket.if_nameindex) if name != "lo"]
        self.ip(self.node, *(f"link del {link}" for link in links))
        _remove([self.node])
        self._namespaces.remove(self.node)
        self._make([self.node])
        self._connect()

    def add_address(self, pod: Pod, address: str) -> None:
        """Give the pod one more address, routed to its link."""
        self.ip(pod.namespace, _address(address, "eth0"))
        self.ip(self.node, _host_route(address, pod.link))

    def remove_address(self, pod: Pod, address: str) -> None:
        self.ip(self.node, f"route del {_host(address)} dev {pod.link}")
        self.ip(pod.namespace, f"addr del {_host(address)} dev eth0")

    def add_world_address(self, *addresses: str) -> None:
        """Let the outside world answer on these addresses too; the node's default routes lead there."""
        self.ip(self.world, *(_address(a, "lo") for a in addresses))

    def remove_world_address(self, *addresses: str) -> None:
        self.ip(self.world, *(f"addr del {_host(a)} dev lo" for a in addresses))

    # -- doing things in a place ----------------------------------------------------------------------------------

    def ip(self, place: str, *commands: str) -> None:
        """Run `ip` commands in one go. Raises CalledProcessError with what was said of the first that failed."""
        _batch(commands, place)

    def run(self, place: str, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, its output captured as text unless `options` say otherwise."""
        given = {"capture_output": True, "text": True, "timeout": 60, **options}
        return subprocess.run(_entering(place, argv), check=check, **given)

    def popen(self, place: str, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program, in a process group of its own; it is ended with the lab at the latest."""
        given = {"text": True, "start_new_session": True, **options}
        process = subprocess.Popen(_entering(place, argv), **given)
        self._started.append(process)
        return process

    def inside(self, place: str, do: Callable[[], T]) -> T:
        """What `do()` returns or raises, run in a thread that stands in that namespace.

        A socket belongs for life to the namespace where it was opened, so it may be used from anywhere afterwards.
        """
        return inside(place, do)

    def socket(self, place: str, family: int, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        """A new socket of that place, with a time-out of 2 s."""
        opened = inside(place, lambda: socket.socket(family, kind))
        opened.settimeout(2)
        return opened

    def sysctl(self, place: str, **values: int | str) -> None:
        """Set `net` sysctls; the dots are written as two underscores: `ipv4__ip_forward=1`."""
        inside(place, lambda: _write_sysctls({key.replace("__", "/"): value for key, value in values.items()}))

    # -- making ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._make([self.node, self.world])
        self._connect()

    def _connect(self) -> None:
        self.sysctl(self.node, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        node, world = zip(NODE_ADDRESSES, (24, 64), strict=True), zip(WORLD_ADDRESSES, (24, 64), strict=True)
        self.ip(
            self.node,
            f"link add {UPLINK} type veth peer name eth0 netns {self.world}",
            f"link set {UPLINK} up",
            *(f"addr add {address}/{length} dev {UPLINK}{_nodad(address)}" for address, length in node),
            *(f"route add default via {address} dev {UPLINK}" for address in WORLD_ADDRESSES),
        )
        self.ip(
            self.world,
            "link set eth0 up",
            *(f"addr add {address}/{length} dev eth0{_nodad(address)}" for address, length in world),
            *(f"route add default via {address} dev eth0" for address in NODE_ADDRESSES),
        )

    def _make(self, namespaces: Sequence[str]) -> None:
        for name in namespaces:
            if name in self._namespaces:
                raise ValueError(f"{name} exists already in this lab")
        self._namespaces += namespaces
        try:
            _batch([f"netns add {name}" for name in namespaces])
        except subprocess.CalledProcessError as error:
            raise MissingFeatureError(
                f"network namespaces cannot be made here ({error.stderr.strip()}); "
                "run as root on the machine itself or in a privileged container"
            ) from None
        # Without duplicate address detection a link is usable at once, not a second later.
        values: dict[str, int | str] = {
            "ipv6/conf/default/accept_dad": 0,
            "ipv4/conf/all/rp_filter": self._rp_filter,
            "ipv4/conf/default/rp_filter": self._rp_filter,
        }
        for name in namespaces:
            inside(name, functools.partial(_write_sysctls, values))
            self.ip(name, "link set lo up")


def inside(namespace: str, do: Callable[[], T]) -> T:
    """What `do()` returns or raises, run in a new thread that has entered that network namespace."""
    result: list[T] = []
    failure: list[BaseException] = []

    def enter_and_do() -> None:
        try:
            _enter(namespace)
            result.append(do())
        except BaseException as error:  # handed to the caller's thread, which raises it
            failure.append(error)

    thread = threading.Thread(target=enter_and_do, name=f"inside {namespace}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def sweep(prefix: str) -> list[str]:
    """Remove the namespaces of labs of this prefix whose process is dead, with the programs still in them.

    Returns the names of what was removed.
    """
    dead = [path.name for path in _of_prefix(prefix) if not Path("/proc", _owner(path.name, prefix)).exists()]
    _remove(dead)
    return dead


def _of_prefix(prefix: str) -> list[Path]:
    found = NAMESPACES.glob(f"{prefix}-*-*") if NAMESPACES.is_dir() else ()
    return sorted(path for path in found if _owner(path.name, prefix).isdecimal())


def _owner(namespace: str, prefix: str) -> str:
    return namespace.removeprefix(f"{prefix}-").partition("-")[0].partition(".")[0]


def require(tools: Mapping[str, str]) -> None:
    """Raises MissingFeatureError when not root, or when a program is missing (`tools`: program -> Debian package)."""
    if os.geteuid() != 0:
        raise MissingFeatureError("network namespaces need root: run it again with sudo")
    if not Path("/proc/sys/net/ipv6").is_dir():
        raise MissingFeatureError("the kernel has no IPv6: start it without ipv6.disable=1")
    for tool, package in tools.items():
        if shutil.which(tool) is None:
            raise MissingFeatureError(f"the program `{tool}` is missing: apt-get install -y {package}")


def _enter(namespace: str) -> None:
    descriptor = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), namespace)
    finally:
        os.close(descriptor)


def _entering(place: str, argv: Iterable[str]) -> list[str]:
    # Not `ip netns exec`: that remounts /sys, which hides the BPF filesystem.
    return ["nsenter", f"--net={NAMESPACES / place}", "--", *argv]


def _batch(commands: Iterable[str], place: str | None = None) -> None:
    where = ["-n", place] if place else []
    text = "".join(f"{command}\n" for command in commands)
    try:
        subprocess.run(
            ["ip", *where, "-batch", "-"], input=text, text=True, check=True, capture_output=True, timeout=60
        )
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise


def _write_sysctls(values: dict[str, int | str]) -> None:
    for name, value in values.items():
        Path("/proc/sys/net", name).write_text(str(value))


def _host(address: str) -> str:
    return f"{address}/128" if ":" in address else f"{address}/32"


def _address(address: str, link: str) -> str:
    return f"addr add {_host(address)} dev {link}{_nodad(address)}"


def _nodad(address: str) -> str:
    # With accept_dad=0 alone an address is still tentative until a kernel worker has looked at it.
    return " nodad" if ":" in address else ""


def _host_route(address: str, link: str) -> str:
    return f"route add {_host(address)} dev {link}"


def _node_side(pod: Pod, addresses: Iterable[str]) -> Iterable[str]:
    yield f"link add {pod.link} address {GATEWAY_MAC} type veth peer name eth0 netns {pod.namespace}"
    yield f"link set {pod.link} up"
    yield f"addr add fe80::1/64 dev {pod.link} nodad"
    yield from (_host_route(address, pod.link) for address in addresses)


def _pod_side(addresses: Iterable[str]) -> Iterable[str]:
    yield "link set eth0 up"
    yield from (_address(address, "eth0") for address in addresses)
    yield f"neigh add 169.254.1.1 lladdr {GATEWAY_MAC} dev eth0 nud permanent"
    yield "route add 169.254.1.1 dev eth0 scope link"
    yield "route add default via 169.254.1.1 dev eth0"
    yield "route add default via fe80::1 dev eth0"


# -- leaving nothing behind -----------------------------------------------------------------------------------------


def _register(lab: Lab) -> None:
    _open[lab._stem] = lab
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not _handlers and ours:
        _handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, _close_all)


def _unregister(lab: Lab) -> None:
    _open.pop(lab._stem, None)
    if not _open and threading.current_thread() is threading.main_thread():
        for number, before in _handlers.items():
            signal.signal(number, before)
        _handlers.clear()


def _close_all(number: int, frame: FrameType | None) -> None:
    """Unlike SIGINT, which unwinds as KeyboardInterrupt, SIGTERM would end the process with the labs standing."""
    for lab in list(_open.values()):
        lab.close()
    os.kill(os.getpid(), number)


def _end(processes: Iterable[subprocess.Popen[str]]) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _remove(namespaces: Sequence[str]) -> None:
    there = [name for name in namespaces if (NAMESPACES / name).exists()]
    for pid in _processes_in(there):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if there:
        _batch(f"netns del {name}" for name in there)


def _processes_in(namespaces: Iterable[str]) -> list[int]:
    """Processes that would keep these namespaces alive: children of programs that were started there."""
    places = {(NAMESPACES / name).stat().st_ino for name in namespaces}
    found = []
    for entry in Path("/proc").iterdir() if places else ():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and (entry / "ns/net").stat().st_ino in places and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found
