"""Reads, checks and compiles an allowlist, in a child process when a daemon asks and in this one when a tool does.

A file of a whole cluster takes seconds and hundreds of megabytes to read; in a thread it would keep the interpreter's
lock from the event loop. So `load` starts a child of low priority that leaves its result in a file without a name, and
whatever becomes of the child (killed, out of memory, too slow) is a diagnostic like any other.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import BinaryIO

from dnsguard.config.diagnostics import ConfigError, Diagnostic, Severity, errors
from dnsguard.config.files import read_text
from dnsguard.config.groups import Mode
from dnsguard.config.settings import Settings, read_settings
from dnsguard.core.answers import DEFAULT_PROTECTED
from dnsguard.core.model import Action, Address, Origin
from dnsguard.sources.allowlist import AllowlistReader, Surroundings
from dnsguard.sources.store import Store, StoreWriter

DEADLINE = 120.0
"""Seconds after which a child is given up; a file of 50,000 pods needs less than ten."""

MEMORY = 4 << 30
"""Octets of address space that a child may have."""

SHOWN = 1000
"""Diagnostics that a child reports; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """`store` is None when any of `diagnostics` is an error. Whoever holds the store closes it."""

    diagnostics: list[Diagnostic]
    store: Store | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how large a child may grow: seconds and octets."""

    deadline: float = DEADLINE
    memory: int = MEMORY


async def load(
    config: Path,
    allowlist: Path | None,
    runtime: Path,
    *,
    own: Collection[Address] = (),
    bounds: Bounds | None = None,
) -> Loaded:
    """Read both files in a child process. `allowlist` None is the one that the configuration names; `runtime` is a
    directory for the store's file; `own` are the node's addresses. Never raises for what a file or the child does."""
    bounds = bounds or Bounds()
    file_name = str(allowlist or config)
    try:
        descriptor = _unnamed_file(runtime)
    except OSError as error:
        return _failed(str(runtime), f"no file can be made here for the allowlist: {error.strerror}")
    try:
        request = _request(config, allowlist, own, bounds)
        status, output, complaint = await _run_child(descriptor, request, bounds.deadline)
        if status is None:
            return _failed(file_name, f"reading it took longer than {bounds.deadline:g} s and was given up")
        if status != 0:
            return _failed(file_name, _why(status, complaint))
        return _result(descriptor, file_name, output)
    except OSError as error:
        return _failed(file_name, f"the process that reads it could not be started: {error.strerror}")
    finally:
        os.close(descriptor)


def load_here(config: Path, allowlist: Path | None, *, own: Collection[Address] = ()) -> Loaded:
    """The same in this process, for tools: the store is in memory."""
    buffer = io.BytesIO()
    found = compile_files(config, allowlist, own, buffer)
    return Loaded(found, None if errors(found) else Store(buffer.getvalue()))


def compile_files(config: Path, allowlist: Path | None, own: Collection[Address], store: BinaryIO) -> list[Diagnostic]:
    """All findings in both files; `store` is complete when none of them is an error."""
    settings, found = read_settings(config)
    if allowlist is None:
        if settings is None:
            return found
        allowlist = settings.allowlist
    try:
        text = read_text(allowlist)
    except ConfigError as error:
        return found + list(error.diagnostics)
    with _no_collection():
        reader = AllowlistReader(text, str(allowlist), surroundings(settings, own))
        del text
        writer = StoreWriter(store)
        for entry in reader.entries():
            writer.add(entry)
        writer.finish(str(allowlist))
        return found + reader.diagnostics()


def surroundings(settings: Settings | None, own: Collection[Address]) -> Surroundings:
    """What an allowlist is checked against. Without settings only what needs none is checked."""
    if settings is None:
        return Surroundings()
    mine = frozenset(ip_network(address) for address in own)
    protected = settings.answers.protected_networks
    if settings.answers.protect_default:
        protected += (*DEFAULT_PROTECTED, *mine)
    default = settings.default_action.action
    closed = settings.mode is Mode.ENFORCE and default is Action.DENY
    return Surroundings(protected, mine, default, closed)


@contextmanager
def _no_collection() -> Iterator[None]:
    """A tree of a million values has no cycles, and each collection would walk all of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# -- in the daemon


def _unnamed_file(directory: Path) -> int:
    """A descriptor of a new file, 0600, that has no name any more."""
    descriptor, name = tempfile.mkstemp(prefix=".allowlist-", dir=directory)
    Path(name).unlink()
    return descriptor


def _request(config: Path, allowlist: Path | None, own: Collection[Address], bounds: Bounds) -> bytes:
    return json.dumps(
        {
            "config": os.fspath(config),
            "allowlist": None if allowlist is None else os.fspath(allowlist),
            "own": [address.hex() for address in own],
            "memory": bounds.memory,
        }
    ).encode()


async def _run_child(descriptor: int, request: bytes, deadline: float) -> tuple[int | None, bytes, bytes]:
    """Exit status (None: given up), standard output, standard error. The child is dead when this returns or raises."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # never import from the working directory
        "-m",
        "dnsguard.sources.loader",
        str(descriptor),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=(descriptor,),
    )
    try:
        output, complaint = await asyncio.wait_for(child.communicate(request), deadline)
        return child.returncode, output, complaint
    except TimeoutError:
        return None, b"", b""
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def _result(descriptor: int, file: str, output: bytes) -> Loaded:
    try:
        found = [_diagnostic(record) for record in json.loads(output)]
    except ValueError:
        return _failed(file, "the process that reads it ended without a result; load again")
    return Loaded(found, None if errors(found) else Store.mapped(descriptor))


def _failed(file: str, text: str) -> Loaded:
    return Loaded([Diagnostic(Origin(file, 1, 1), text, unread=True)], None)


def _why(status: int, complaint: bytes) -> str:
    if status == _OUT_OF_MEMORY:
        return "there is not enough memory to read it; share policies by name, or group pods by CIDR"
    if status == -signal.SIGKILL:
        return "the process that reads it was killed (out of memory?); load again, or share policies by name"
    if status < 0:
        return f"the process that reads it was ended by {_signal_name(-status)}; load again"
    last = complaint.decode(errors="replace").strip().rpartition("\n")[2][:200]
    return f"the process that reads it failed with status {status}: {last or 'it said nothing'}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _diagnostic(record: list[object]) -> Diagnostic:
    file, line, column, text, severity, unread = record
    assert isinstance(line, int) and isinstance(column, int)
    return Diagnostic(Origin(str(file), line, column), str(text), Severity(str(severity)), bool(unread))


# -- in the child

_OUT_OF_MEMORY = 12


def _go_first_for_memory() -> None:
    """Rather this process than the daemon, whose protection it has inherited: a policy can be read again."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _child(descriptor: int) -> int:
    request = json.load(sys.stdin)
    # Below the daemon, but not so far that a busy node never gets its new policy.
    os.nice(5)
    _go_first_for_memory()
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    allowlist = None if request["allowlist"] is None else Path(request["allowlist"])
    own = [Address(bytes.fromhex(address)) for address in request["own"]]
    try:
        with os.fdopen(descriptor, "w+b", buffering=1 << 20) as store:
            found = compile_files(Path(request["config"]), allowlist, own, store)
    except MemoryError:
        return _OUT_OF_MEMORY
    json.dump([_record(one) for one in _shortened(found)], sys.stdout)
    sys.stdout.flush()
    return 0


def _shortened(found: list[Diagnostic]) -> list[Diagnostic]:
    """Errors before warnings when there are too many; the last one says how many are left out."""
    if len(found) <= SHOWN:
        return found
    chosen = sorted(found, key=lambda one: one.severity is Severity.WARNING)[:SHOWN]
    kept = set(map(id, chosen))
    shown = [one for one in found if id(one) in kept]
    text = f"{len(found) - SHOWN} more errors and warnings; `dnsguard check` prints them all"
    return [*shown, Diagnostic(shown[-1].origin, text, Severity.WARNING)]


def _record(one: Diagnostic) -> list[object]:
    return [one.origin.file, one.origin.line, one.origin.column, one.text, one.severity, one.unread]


if __name__ == "__main__":
    status = _child(int(sys.argv[1]))
    sys.stdout.flush()
    # The interpreter would take a second to free a million values one by one.
    os._exit(status)
