"""Policy and mode go over to what both files say, or stay as they were: the order, and what becomes of a refusal."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dnsguard.config.groups import Settings
from dnsguard.config.settings import load_settings
from dnsguard.control.calls import CallError
from dnsguard.core.errors import KernelError
from dnsguard.daemon.policies import Policies
from dnsguard.engine.change import Outcome
from dnsguard.engine.contracts import EventKind
from dnsguard.engine.counters import Counters

CONFIG = "upstreams: [10.96.0.10]\nallowlist: {folder}/allowlist.yaml\npaths: {{runtime: {folder}}}\nmode: {mode}\n"


class Changes:
    """Stands for the engine's, which has tests of its own: writes down what it is asked for, in order."""

    def __init__(self) -> None:
        self.generation = 1
        self.asked: list[str] = []
        self.refuse = ""

    async def policy(self, store: Any) -> Outcome:
        return self._do("policy", Outcome(1, 0, 0, 0))

    async def audit(self, on: bool) -> int:
        return self._do("Audit" if on else "Enforce", 3)

    def _do(self, what: str, result: Any) -> Any:
        self.asked.append(what)
        if what == self.refuse:
            raise KernelError("EBUSY")
        return result


class Daemon:
    def __init__(self, folder: Path, mode: str) -> None:
        self.folder = folder
        self.applied: list[Settings] = []
        self.events: list[tuple[EventKind, dict[str, Any]]] = []
        self.configure(mode)
        (folder / "allowlist.yaml").write_text("policies: {}\npods: {}\n")
        self.changes = Changes()
        path = folder / "config.yaml"
        self.policies = Policies(
            path, load_settings(path), self, Counters(), own=frozenset, on_settings=self.applied.append
        )  # type: ignore[arg-type]

    all_queries = all_leases = False

    def emit(self, kind: EventKind, /, **fields: Any) -> None:
        self.events.append((kind, fields))

    def configure(self, mode: str) -> None:
        (self.folder / "config.yaml").write_text(CONFIG.format(folder=self.folder, mode=mode))

    async def reload(self) -> Any:
        return await self.policies.reload(self.changes)  # type: ignore[arg-type]


@pytest.fixture
def enforcing(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, "Enforce")
    yield daemon
    daemon.policies.close()


@pytest.fixture
def auditing(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, "Audit")
    yield daemon
    daemon.policies.close()


async def test_enforcing_begins_after_the_new_policy(auditing: Daemon) -> None:
    auditing.configure("Enforce")

    told = await auditing.reload()

    assert auditing.changes.asked == ["policy", "Enforce"]
    assert told["mode"] == "Enforce"
    assert [one.mode.value for one in auditing.applied] == ["Enforce"]
    assert (EventKind.MODE_CHANGED, {"mode": "Enforce", "count": 3}) in auditing.events


async def test_audit_begins_before_the_new_policy(enforcing: Daemon) -> None:
    enforcing.configure("Audit")

    await enforcing.reload()

    assert enforcing.changes.asked == ["Audit", "policy"]


async def test_the_mode_that_is_in_force_is_left_alone(enforcing: Daemon) -> None:
    told = await enforcing.reload()

    assert enforcing.changes.asked == ["policy"]
    assert "mode" not in told


async def test_a_policy_that_is_refused_takes_audit_back(enforcing: Daemon) -> None:
    enforcing.configure("Audit")
    enforcing.changes.refuse = "policy"

    with pytest.raises(KernelError):
        await enforcing.reload()

    assert enforcing.changes.asked == ["Audit", "policy", "Enforce"]
    assert enforcing.applied == []


async def test_enforcing_that_is_refused_is_tried_again_by_the_next_reload(auditing: Daemon) -> None:
    auditing.configure("Enforce")
    auditing.changes.refuse = "Enforce"
    with pytest.raises(KernelError):
        await auditing.reload()
    auditing.changes.refuse = ""

    await auditing.reload()

    assert auditing.changes.asked == ["policy", "Enforce", "policy", "Enforce"]


@pytest.mark.parametrize("file", ["config.yaml", "allowlist.yaml"])
async def test_a_file_with_errors_changes_nothing(auditing: Daemon, file: str) -> None:
    auditing.configure("Enforce")
    with (auditing.folder / file).open("a") as broken:
        broken.write("nonsense: 1\n")

    with pytest.raises(CallError, match=f"{file}:.*error: unknown key 'nonsense'"):
        await auditing.reload()

    assert (auditing.changes.asked, auditing.applied) == ([], [])


async def test_of_a_file_that_is_refused_only_the_errors_are_given_back(enforcing: Daemon) -> None:
    config, allowlist = enforcing.folder / "config.yaml", enforcing.folder / "allowlist.yaml"
    config.write_text(config.read_text().replace("10.96.0.10", "10.96.0.11"))
    allowlist.write_text("policies: {}\npods: 7\n")

    with pytest.raises(CallError) as refused:
        await enforcing.reload()

    assert str(refused.value).startswith(f"{allowlist}:2:7: error: ")
    assert str(refused.value).count("\n") == 0
    assert enforcing.policies.late == []


async def test_what_takes_effect_at_a_restart_is_remembered_until_it_is_taken_back(enforcing: Daemon) -> None:
    config = enforcing.folder / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("10.96.0.10", "10.96.0.11"))
    await enforcing.reload()
    assert enforcing.policies.late == [f"{config}:1:12: warning: upstreams: takes effect at a restart"]
    config.write_text(before)

    await enforcing.reload()

    assert enforcing.policies.late == []


# ---- what is told of a reload that changes nothing, or not all


def kinds(daemon: Daemon) -> list[EventKind]:
    return [kind for kind, _ in daemon.events]


@pytest.mark.parametrize("file", ["config.yaml", "allowlist.yaml"])
async def test_errors_in_a_file_are_told_as_the_files(enforcing: Daemon, file: str) -> None:
    with (enforcing.folder / file).open("a") as broken:
        broken.write("nonsense: 1\n")
    with pytest.raises(CallError):
        await enforcing.reload()

    assert kinds(enforcing) == [EventKind.POLICY_REJECTED]


@pytest.mark.parametrize("file", ["config.yaml", "allowlist.yaml"])
async def test_a_file_that_cannot_be_read_is_told_as_no_error_in_it(enforcing: Daemon, file: str) -> None:
    (enforcing.folder / file).unlink()
    with pytest.raises(CallError):
        await enforcing.reload()

    ((kind, fields),) = enforcing.events
    assert kind is EventKind.POLICY_NOT_TAKEN
    assert "there is no such file; create it" in fields["reason"]


async def test_a_reader_that_cannot_be_started_is_told_as_no_error_in_the_file(
    enforcing: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_process(*_: Any, **__: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("asyncio.create_subprocess_exec", no_process)
    with pytest.raises(CallError):
        await enforcing.reload()

    assert kinds(enforcing) == [EventKind.POLICY_NOT_TAKEN]


async def test_a_policy_that_the_kernel_refuses_is_told_as_no_error_in_the_file(enforcing: Daemon) -> None:
    enforcing.changes.refuse = "policy"
    with pytest.raises(KernelError):
        await enforcing.reload()

    told = {"reason": "the policy could not be put in force: EBUSY"}
    assert enforcing.events[-1] == (EventKind.POLICY_NOT_TAKEN, told)


async def test_a_key_that_only_a_start_reads_is_told_as_that(enforcing: Daemon) -> None:
    with (enforcing.folder / "config.yaml").open("a") as more:
        more.write("cache: {entries: 777}\n")

    await enforcing.reload()

    (kind,) = [kind for kind, fields in enforcing.events if "cache.entries: takes effect" in str(fields.get("reason"))]
    assert kind is EventKind.RESTART_NEEDED
