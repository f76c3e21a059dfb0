"""A reboot: nothing of before is believed, pod links are closed until the daemon is ready, and the order holds."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dnsguard.core.names import to_text
from dnsguard.names_file.content import FILE as NAMES
from tests.host.host import Host, hosting
from tests.host.rebooting import (
    CLOSED,
    EARLY,
    FIREWALL,
    FIREWALLS,
    GATE,
    NETWORK,
    OPEN,
    READY,
    RUNTIMES,
    boot_anew,
    found,
    furnish,
    open_the_gate,
    services,
    start_at_once,
)
from tests.node.scene import A6, DB, A, B, Flow

pytestmark = pytest.mark.node

NAME = "db.example.com"
LASTING = 600
"""Seconds: an answer of before the reboot would still be valid after it."""
AMISS = {"owed.json": f'{{"judge": ["{A}"], "forget": []}}', "starts": "4\nof before"}
"""Files of the runtime directory that are there only while something is."""


@dataclass
class Held:
    """A node that boots anew, as it was while the daemon was held back."""

    host: Host
    flow: Flow
    """Of pod a's, open since before the reboot and not used since."""
    numbers: tuple[dict[str, int], dict[str, int]]
    """Of the links, before and now."""
    left: list[str]
    """Files in /run/dnsguard and the bpffs."""
    reached: list[str]
    """What pod a got to."""
    found: dict[str, str]


@dataclass
class Ready:
    """The same when the daemon has become ready, and nobody has asked it anything yet."""

    host: Host
    leases: list[Any]
    reached: list[str]
    found: dict[str, str]


@pytest.fixture(scope="module")
def node(image: Path) -> Iterator[Host]:
    """Firewalls and what starts pods are on its disk; nothing of it runs."""
    with hosting([image], start=False) as host:
        furnish(host.machine)
        yield host


@pytest.fixture(scope="module")
def held(node: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    names = node.machine.root / "run/dnsguard" / NAMES
    kept = tmp_path_factory.mktemp("before") / NAMES
    busy_before(node)
    with open_flow(node) as flow, open_flow(node) as other:
        shutil.copy(names, kept)
        before = numbers(node)
        boot_anew(node)
        left = remains(node)
        node.lab.link(node.scene.a, A, A6)
        node.lab.link(node.scene.b, B)
        reached = reaches(node, other)
        outlive(node, kept)
        yield Held(node, flow, (before, numbers(node)), left, reached, found(node.machine))


@pytest.fixture(scope="module")
def ready(held: Held) -> Ready:
    host = held.host
    open_the_gate(host)
    leases = host.daemon.ask("leases")
    return Ready(host, leases, reaches(host, held.flow, asks=False), found(host.machine))


def open_flow(host: Host) -> Flow:
    flow = host.scene.connect(host.scene.a, DB)
    assert flow is not None and flow.alive()
    return flow


def busy_before(host: Host) -> None:
    """Start the daemon and have it hold all that it ever holds."""
    scene, machine = host.scene, host.machine
    scene.zone.put(NAME, "A", DB, ttl=LASTING)
    host.daemon.start()
    for _ in range(3):  # the third is answered by the kernel
        assert scene.resolve(scene.a, NAME) == [DB]
    assert seen(host) == {NAME}
    host.until(lambda: names_kept(host) == {NAME})
    for file, text in AMISS.items():
        machine.write(f"/run/dnsguard/{file}", text)
    assert {f"/run/dnsguard/{file}" for file in (NAMES, *AMISS)} | {"/sys/fs/bpf/dnsguard/maps"} <= set(remains(host))


def remains(host: Host) -> list[str]:
    """What there is in the runtime directory, and pinned; *.debug are the kernel's."""
    return host.machine.shell("find /run/dnsguard /sys/fs/bpf -mindepth 1 ! -name '*.debug'").split()


def outlive(host: Host, names: Path) -> None:
    """As where the runtime directory is on a disk, against the advice: the file of names is there again."""
    with contextlib.closing(sqlite3.connect(names)) as file, file:
        # A container gets a boot's id of its own, but its services have the /proc of the machine below, which goes on.
        file.execute("UPDATE boot SET id = ?", (str(uuid.uuid4()),))
    shutil.copy(names, host.machine.root / "run/dnsguard" / NAMES)
    host.machine.run("chown", "dnsguard:dnsguard", f"/run/dnsguard/{NAMES}")


def numbers(host: Host) -> dict[str, int]:
    """Of the links on the node."""
    listed = host.lab.run(host.lab.node, "ip", "-oneline", "link").stdout.splitlines()
    return {line.split()[1].partition("@")[0].rstrip(":"): int(line.split(":")[0]) for line in listed}


def reaches(host: Host, flow: Flow, *, asks: bool = True) -> list[str]:
    """What pod a gets to: an answer, if it asks, where the old one led, and its old flow. That comes last, for a link
    that is new may lose its first packet."""
    scene = host.scene
    got = {
        "answer": asks and not scene.silent(scene.a, NAME),
        "new flow": scene.opens(scene.a, DB),
        "old flow": not flow.dead(),
    }
    return [what for what, came in got.items() if came]


def names_kept(host: Host) -> set[str] | None:
    """The names in the daemon's file of them, by a copy, for it is locked; None while there is no whole one."""
    with tempfile.NamedTemporaryFile() as copy, contextlib.suppress(FileNotFoundError, sqlite3.DatabaseError):
        shutil.copy(host.machine.root / "run/dnsguard" / NAMES, copy.name)
        with contextlib.closing(sqlite3.connect(copy.name)) as file:
            return {to_text(name) for (name,) in file.execute("SELECT name FROM names")}
    return None


def seen(host: Host) -> set[str]:
    """The names that `dnsguard learn` knows pod a to have asked for."""
    rows = host.daemon.ask("learn")
    return {name["name"] for row in rows if row["pod"] == "shop/a" for name in row["names"]}


# -- parts of a boot --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_links_are_closed_behind_a_firewall_and_before_the_network_and_what_starts_pods(
    node: Host, firewall: str
) -> None:
    start_at_once(node, *services(EARLY, firewall, NETWORK, *RUNTIMES))

    assert found(node.machine) == {firewall: OPEN, EARLY: OPEN, **dict.fromkeys((NETWORK, *RUNTIMES), CLOSED)}


def test_the_daemon_waits_for_the_early_unit(node: Host) -> None:
    start_at_once(node, *services(EARLY, "dnsguard", "kubelet"))

    by = found(node.machine)
    assert by.pop("kubelet").startswith(READY)
    assert by == {EARLY: OPEN}


@pytest.mark.parametrize("firewall", FIREWALLS)
def test_where_the_early_unit_is_masked_the_daemon_itself_waits_for_a_firewall(node: Host, firewall: str) -> None:
    node.machine.systemctl("mask", "--runtime", "dnsguard-early.service")
    try:
        start_at_once(node, *services("dnsguard", firewall, "kubelet"))
    finally:
        node.machine.systemctl("unmask", "--runtime", "dnsguard-early.service")

    by = found(node.machine)
    assert by.pop("kubelet").startswith(READY)
    assert by == {firewall: OPEN}


# -- a whole one ------------------------------------------------------------------------------------------------------


def test_a_reboot_leaves_nothing_in_the_runtime_directory_and_in_the_kernel(held: Held) -> None:
    assert held.left == []


def test_until_the_daemon_is_ready_a_pod_reaches_nothing(held: Held) -> None:
    before, now = held.numbers

    assert held.reached == []
    assert before == now  # a pod of before would be taken for the one of now


def test_what_starts_pods_finds_links_closed_and_kubelet_finds_the_daemon_ready(held: Held, ready: Ready) -> None:
    early = {FIREWALL: OPEN, EARLY: OPEN, **dict.fromkeys((NETWORK, GATE, *RUNTIMES), CLOSED)}
    del early["kubelet"]

    assert held.found == early
    assert ready.found.pop("kubelet").startswith(READY)
    assert ready.found == early


def test_after_a_reboot_the_daemon_believes_nothing_of_before(ready: Ready) -> None:
    assert ready.leases == []
    assert ready.reached == []
    ready.host.until(lambda: names_kept(ready.host) == set())  # written by a thread, and behind READY


def test_a_pod_that_asks_anew_is_let_again_and_what_learn_has_seen_is_kept(ready: Ready) -> None:
    host, scene = ready.host, ready.host.scene
    asked = scene.zone.asked(NAME)
    assert seen(host) == {NAME}

    assert scene.resolve(scene.a, NAME) == [DB]

    assert scene.zone.asked(NAME) == asked + 1
    assert scene.opens(scene.a, DB)
    assert not scene.opens(scene.b, DB)
