"""What the file of names holds, and how it is read: every value checked, nothing repaired.

Ends are moments on the monotonic clock, which goes on over a restart and not over a reboot: the boot's identity is
stored with them. A name whose end is over is what a lease stood on, kept for as long as a flow may live on it; one
that was taken back at a moment ends at the negative of it. How long a lease really lasts is known to the kernel alone.
"""

from __future__ import annotations

import math
import os
import sqlite3
import stat
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dnsguard.core.lease import NAMES_PER_LEASE
from dnsguard.core.model import Address, LinkIndex, Name, Seconds

FILE: Final = "names.sqlite"
APPLICATION: Final = 0x646E7347
VERSION: Final = 1
"""Of the tables. A file of another version is set aside: it is worth one restart only."""
MOST_BYTES: Final = 128 << 20
"""Of the file. 100,000 leases need a twelfth."""
MOST_SET_ASIDE: Final = 3
"""Files kept for whoever looks into it; the last is replaced."""
BESIDE: Final = ("-journal", "-wal", "-shm")
"""Files that SQLite may leave beside its own."""

SCHEMA: Final = f"""
CREATE TABLE boot (id TEXT NOT NULL) STRICT;
CREATE TABLE pods (link INTEGER PRIMARY KEY, addresses BLOB NOT NULL, program TEXT NOT NULL) STRICT;
CREATE TABLE names (
    link INTEGER NOT NULL, scope TEXT NOT NULL, peer BLOB NOT NULL, name BLOB NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (link, scope, peer, name)
) STRICT, WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""
"""`addresses` are the pod's own, each behind an octet of its length. An empty name stands for unknown names, which mean
something under that program only."""


class DamagedError(Exception):
    """The file is not what was written; the text says what is wrong with it."""


@dataclass(slots=True)
class PodNames:
    """The names of one pod's leases, each with its end, by scope and peer; `addresses` were the pod's own."""

    addresses: frozenset[Address] = frozenset()
    program: str = ""
    leases: dict[tuple[str, Address], dict[Name, Seconds]] = field(default_factory=dict)


Names = Mapping[LinkIndex, PodNames]
"""By the pod's link: its index is not given again before a reboot."""


def boot_id() -> str:
    """The kernel's name of this boot (random.4, /proc/sys/kernel/random/boot_id)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def read_names(path: Path, boot: str) -> Names:
    """What the file says; nothing when there is none, or one of another boot. Raises DamagedError."""
    try:
        found = path.lstat()
        _check_kind(found)
        if not found.st_size:
            return {}  # made, and never written
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as file:
            _check_head(file)
            stored = [row[0] for row in file.execute("SELECT id FROM boot")]
            return _read(file) if stored == [boot] else {}
    except FileNotFoundError:
        return {}
    except (OSError, sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        raise DamagedError(str(error)) from error


def _check_kind(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError("it is not a file")
    if found.st_size > MOST_BYTES:
        raise DamagedError(f"it has {found.st_size} octets, more than were ever written")


def _check_head(file: sqlite3.Connection) -> None:
    (application,) = file.execute("PRAGMA application_id").fetchone()
    (version,) = file.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise DamagedError("it was not written by dnsguard")
    if version != VERSION:
        raise DamagedError(f"its version is {version}, this dnsguard writes {VERSION}")
    (said,) = file.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise DamagedError(str(said))


def _read(file: sqlite3.Connection) -> Names:
    rows = file.execute("SELECT link, addresses, program FROM pods")
    pods = {link: PodNames(_addresses(packed), str(program)) for link, packed, program in rows}
    for link, scope, peer, name, until in file.execute("SELECT link, scope, peer, name, until FROM names"):
        if link not in pods:
            raise DamagedError(f"it has names of a pod on link {link!r} and no such pod")
        if not isinstance(scope, str) or not _is_address(peer) or not _is_name(name) or not _is_moment(until):
            raise DamagedError(f"it has a row that is none: {(link, scope, peer, name, until)!r:.200}")
        pods[link].leases.setdefault((scope, peer), {})[name] = until
    for each in pods.values():
        each.leases = {key: _latest(names) for key, names in each.leases.items()}
    return pods


def _latest(names: dict[Name, Seconds]) -> dict[Name, Seconds]:
    """As many as a lease remembers: living ones, and what it stood on before."""
    if len(names) <= 2 * NAMES_PER_LEASE:
        return names
    ordered = sorted(names.items(), key=lambda item: abs(item[1]), reverse=True)
    return dict(ordered[: 2 * NAMES_PER_LEASE])


def pack_addresses(addresses: Iterable[Address]) -> bytes:
    return b"".join(bytes((len(address),)) + address for address in addresses)


def _addresses(packed: object) -> frozenset[Address]:
    if not isinstance(packed, bytes):
        raise DamagedError("it has a pod without addresses")
    found, at = set(), 0
    while at < len(packed):
        address = packed[at + 1 : at + 1 + packed[at]]
        if not _is_address(address) or len(address) != packed[at]:
            raise DamagedError("it has a pod whose addresses are none")
        found.add(Address(address))
        at += 1 + len(address)
    return frozenset(found)


def _is_address(value: object) -> bool:
    return isinstance(value, bytes) and len(value) in (4, 16)


def _is_moment(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_name(value: object) -> bool:
    """A name in wire form and lower case (RFC 1035 section 3.1), or none at all."""
    if not isinstance(value, bytes) or len(value) > 255:
        return False
    at, length = 0, len(value)
    while at < length and (label := value[at]):
        if label > 63:
            return False
        at += 1 + label
    return not value or (at == length - 1 and value == value.lower())


def set_aside(path: Path) -> Path:
    """Move the file away, with what SQLite left beside it, and return where it is now. Raises OSError."""
    places = [path.with_name(f"{path.name}.corrupt-{number}") for number in range(1, MOST_SET_ASIDE + 1)]
    aside = next((place for place in places if not os.path.lexists(place)), places[-1])
    path.rename(aside)
    for suffix in BESIDE:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside
