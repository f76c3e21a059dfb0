"""Forbidden things, tried from inside a sandbox: each function is true when what it tries was let.

Run by an interpreter in the sandbox, as `probes.py NAME...`; prints one JSON object. Standard library only. Needs the
baits that tests/host/test_hardening.py has laid out, and /run/dnsguard to write in.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
SYS_PTRACE, SYS_BPF, SYS_SETPRIORITY = 101, 321, 141
"""On x86-64."""
TRACEME = 0
CAPBSET_READ, CAP_SYS_ADMIN = 23, 21
NEWUSER = 0x10000000
LINUX32 = 0x0008
MAP_CREATE, HASH = 0, 1
WORK = Path("/run/dnsguard")


def gets_capabilities() -> bool:
    return bool(LIBC.prctl(CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) == 1)


def marks_packets() -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
    return True


def makes_files_for_all() -> bool:
    with _file() as file:
        return bool(stat.S_IMODE(file.stat().st_mode) & 0o077)


def writes_outside() -> bool:
    Path("/srv/open/file").write_text("")
    return True


def reads_homes() -> bool:
    return Path("/home/somebody/file").exists()


def reads_tmp() -> bool:
    return Path("/tmp/bait").exists()


def sees_devices() -> bool:
    return Path("/dev/bait").exists()


def sets_sysctls() -> bool:
    file = Path("/proc/sys/net/ipv4/ip_forward")
    file.write_text(file.read_text())
    return True


def reads_modules() -> bool:
    return bool(list(Path("/usr/lib/modules").iterdir()))


def makes_groups() -> bool:
    folder = Path(f"/sys/fs/cgroup/bait/{os.getpid()}")
    folder.mkdir()
    folder.rmdir()
    return True


def has_the_node_s_hostname() -> bool:
    return Path("/run/uts").read_text().strip() == str(Path("/proc/self/ns/uts").readlink())


def sees_processes() -> bool:
    return Path("/proc/1").exists()


def writes_pins() -> bool:
    folder = Path(f"/sys/fs/bpf/dnsguard/probe{os.getpid()}")
    folder.mkdir()
    folder.rmdir()
    return True


def opens_packet_sockets() -> bool:
    """Without CAP_NET_RAW the kernel itself refuses, but with another error than the filter."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def opens_ip_sockets() -> bool:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    return True


def sends_packets() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", 9))
    return True


def sees_the_kernel_s_files() -> bool:
    return Path("/proc/sys").exists()


def makes_namespaces() -> bool:
    return _in_child(lambda: LIBC.unshare(NEWUSER) == 0)


def makes_setuid_files() -> bool:
    with _file() as file:
        file.chmod(0o4755)
        return bool(file.stat().st_mode & stat.S_ISUID)


def changes_personality() -> bool:
    return _in_child(lambda: LIBC.personality(LINUX32) != -1)


def makes_code() -> bool:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return True


def is_traced() -> bool:
    return _in_child(lambda: LIBC.syscall(SYS_PTRACE, TRACEME, 0, 0, 0) == 0)


def changes_owners() -> bool:
    with _file() as file:
        os.chown(file, -1, os.getgid())
    return True


def makes_maps() -> bool:
    wanted = (ctypes.c_uint32 * 16)(HASH, 4, 4, 1)
    descriptor = LIBC.syscall(SYS_BPF, MAP_CREATE, ctypes.byref(wanted), ctypes.sizeof(wanted))
    return bool(descriptor >= 0)


def is_killed_for_a_call() -> bool:
    child = os.fork()
    if not child:
        LIBC.syscall(SYS_PTRACE, TRACEME, 0, 0, 0)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSYS


@contextlib.contextmanager
def _file() -> Iterator[Path]:
    file = Path(tempfile.mktemp(dir=WORK))  # not mkstemp, which has a mode of its own
    file.write_text("")
    try:
        yield file
    finally:
        file.unlink()


def _in_child(do: Callable[[], bool]) -> bool:
    child = os.fork()
    if not child:
        os._exit(0 if do() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main(names: list[str]) -> None:
    found = {}
    for name in names:
        try:
            found[name] = globals()[name]()
        except OSError:
            found[name] = False
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
