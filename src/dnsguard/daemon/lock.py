"""The lock that makes a process the only one on a runtime directory: a daemon, or what removes its traces."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from dnsguard.control.calls import CallError
from dnsguard.core.errors import MissingFeatureError


class Lock:
    """A file that only one process has locked, for as long as that process lives or until `close`."""

    def __init__(self, runtime: Path) -> None:
        """Raises CallError when another process has it or the directory cannot be used, MissingFeatureError when the
        user may not."""
        self.path = runtime / "lock"
        self._descriptor = _locked(self.path)

    def stands(self) -> bool:
        """Whether whoever looks for the lock finds this one."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            return False

    def renew(self) -> None:
        """Lock the file that stands there now, or a new one. Raises as the constructor does, with the old one kept."""
        before, self._descriptor = self._descriptor, _locked(self.path)
        os.close(before)

    def close(self) -> None:
        os.close(self._descriptor)


def leave_to_owner(runtime: Path) -> None:
    """Raises CallError for root where the directory is another user's: files of root's there, and root's maps, would
    keep the service from starting."""
    with contextlib.suppress(FileNotFoundError):
        owner = runtime.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            start = "start the service (systemctl start dnsguard), or set another paths.runtime"
            raise CallError(f"{runtime} is for user {_user(owner)}, not for root: {start}")


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@contextlib.contextmanager
def only_one(runtime: Path) -> Iterator[Lock]:
    """Be the only daemon on this runtime directory."""
    lock = Lock(runtime)
    try:
        yield lock
    finally:
        lock.close()


def _locked(path: Path) -> int:
    runtime = path.parent
    try:
        runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = _opened(path)
    except PermissionError as error:
        raise MissingFeatureError(_refused(path, error)) from error
    except OSError as error:
        raise CallError(f"paths.runtime: {runtime}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CallError(f"a daemon is running on {runtime}; stop it first") from None
    return descriptor


def _opened(path: Path) -> int:
    """A new one is the directory's owner's: root's `cleanup` must not lock out the service, which is another user. That
    user writes the directory, so nothing there may lead root elsewhere."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def _refused(path: Path, error: PermissionError) -> str:
    if os.access(path.parent, os.W_OK) and path.exists():
        return f"{path} is another user's: remove it, when no dnsguard runs"
    return f"root is missing: run this as root ({error.filename}: {error.strerror})"
