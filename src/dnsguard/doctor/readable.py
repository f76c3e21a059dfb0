"""Whether the user that runs the service may read its files: root, who looks, may read everything.

`test` is run as that user, so that folders on the way, groups and access lists count as they will for the daemon.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dnsguard.doctor.findings import Finding, warning

USER: Final = "dnsguard"
"""Who runs the service."""


class Obstacle(NamedTuple):
    """What keeps `user` from reading `file`, and what to do."""

    file: Path
    found: str
    remedy: str


def check_readable(files: Iterable[Path]) -> Iterator[Finding]:
    for one in obstacles(files):
        yield warning(str(one.file), one.found, one.remedy)


def obstacles(files: Iterable[Path]) -> Iterator[Obstacle]:
    """None when there is no such user, or whoever asks may not become it. Files that are not there do not count."""
    try:
        account = pwd.getpwnam(USER)
    except KeyError:
        return
    if os.geteuid() != 0 or account.pw_uid == 0:
        return
    for file in (file for file in files if file.exists()):
        yield from _obstacle(file.absolute(), account)


def _obstacle(file: Path, account: pwd.struct_passwd) -> Iterator[Obstacle]:
    if _may(account, "-r", file) is not False:
        return
    name = account.pw_name
    closed = next((folder for folder in reversed(file.parents) if _may(account, "-x", folder) is False), None)
    if closed is not None:
        yield Obstacle(file, f"the service's user {name} may not enter {closed}", f"chmod o+x {closed}")
    else:
        found = f"the service's user {name} may not read it: a start or a reload fails"
        yield Obstacle(file, found, f"chgrp {name} {file} && chmod g+r {file}")


def _may(account: pwd.struct_passwd, what: str, path: Path) -> bool | None:
    """None: it cannot be tried, where root may not become another user."""
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    try:
        done = subprocess.run(
            ["/usr/bin/test", what, str(path)],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=groups,
            cwd="/",
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.returncode == 0
