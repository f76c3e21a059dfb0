"""The lock that makes a process the only one on a runtime directory: a daemon, or what removes its traces."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dnsguard.control.calls import CallError
from dnsguard.core.errors import MissingFeatureError


@contextlib.contextmanager
def only_one(runtime: Path) -> Iterator[None]:
    """Be the only daemon on this runtime directory."""
    try:
        runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise MissingFeatureError(f"root is missing: run this as root ({error.filename}: {error.strerror})") from error
    except OSError as error:
        raise CallError(f"paths.runtime: {runtime}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CallError(f"a daemon is running on {runtime}; stop it first") from None
    else:
        yield
    finally:
        os.close(descriptor)
