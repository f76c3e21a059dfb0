"""dnsguard as a service of systemd: it starts, is reloaded, is restarted, and systemd knows how it is."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from dnslib import DNSRecord

from tests.host.host import UNIT, Host, hosting
from tests.host.machine import TOP
from tests.node.daemon import ANY_RESOLVER
from tests.node.scene import ALLOWLIST, DB, OTHER, A, addresses, exchange, rcode

pytestmark = pytest.mark.node

PATIENCE = 30.0
"""Seconds: a busy machine starts an interpreter slowly. How fast the daemon is there is for benchmarks."""
BAD_ALLOWLIST = "apiVersion: dnsguard/v1\nkind: Allowlist\npods:\n  10.244.0.5: [192.0.2.1]\n"


def status(host: Host) -> str:
    return host.machine.systemctl("status", "--full", "--lines=20", UNIT, check=False).stdout


def answered_again(host: Host, name: str = "db.example.com") -> list[str]:
    """What a pod's resolver gets that goes on asking."""
    host.until(lambda: not host.scene.silent(host.scene.a, name))
    return host.scene.resolve(host.scene.a, name)


def waiting(host: Host) -> str:
    """What the status says of a start that is not ready."""
    return host.machine.show(UNIT, "StatusText").get("StatusText", "")


def example(begins: str) -> str:
    """The line that the unit's head recommends to operators."""
    lines = ((TOP / "systemd" / UNIT).read_text().partition("[Unit]")[0]).splitlines()
    return next(line.removeprefix("#").strip() for line in lines if begins in line)


def test_a_pod_under_the_service_reaches_what_it_may_and_nothing_else(standing: Host) -> None:
    scene = standing.scene

    assert standing.machine.show(UNIT, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    assert standing.daemon.ask("status")["enforcers"] == ["nftables", "ebpf"]
    assert not scene.opens(scene.a, DB)
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    assert scene.opens(scene.a, DB)
    assert rcode(scene.ask(scene.a, "other.example.com")) == "NXDOMAIN"


def test_the_status_says_how_many_pods_and_which_generation(standing: Host) -> None:
    assert standing.machine.show(UNIT, "StatusText")["StatusText"] == "ready: 2 pods, generation 1"


def test_a_reload_is_in_force_when_systemctl_returns(standing: Host) -> None:
    scene = standing.scene
    standing.daemon.write("allowlist.yaml", "Allowlist", {"pods": {A: ["other.example.com"]}})

    standing.machine.systemctl("reload", UNIT)

    assert rcode(scene.ask(scene.a, "other.example.com")) == "NOERROR"
    assert rcode(scene.ask(scene.a, "db.example.com")) == "NXDOMAIN"
    assert "generation 2" in standing.machine.show(UNIT, "StatusText")["StatusText"]


def test_a_reload_of_a_bad_file_fails_and_the_status_names_the_place_until_a_good_one(standing: Host) -> None:
    standing.machine.write("/etc/dnsguard/allowlist.yaml", BAD_ALLOWLIST)

    assert standing.machine.systemctl("reload", UNIT, check=False).returncode != 0

    told = status(standing)
    assert "active (running)" in told
    assert 'Status: "ready: 2 pods, generation 2; the last reload was refused: ' in told
    assert told.count("/etc/dnsguard/allowlist.yaml:4:16: error: ") >= 2  # in the status, and in the lines of the log
    assert standing.scene.resolve(standing.scene.a, "other.example.com") == [OTHER]
    standing.daemon.write("allowlist.yaml", "Allowlist", ALLOWLIST)
    standing.machine.systemctl("reload", UNIT)
    assert standing.machine.show(UNIT, "StatusText")["StatusText"] == "ready: 2 pods, generation 3"


def test_a_reload_of_a_bad_configuration_is_refused_by_the_daemon_which_tells_it_too(standing: Host) -> None:
    good = standing.machine.read("/etc/dnsguard/config.yaml")
    standing.machine.write("/etc/dnsguard/config.yaml", f"{good}mod: Enforce\n")

    assert standing.machine.systemctl("reload", UNIT, check=False).returncode != 0

    assert "the last reload was refused: /etc/dnsguard/config.yaml:" in status(standing)
    assert "unknown key 'mod'" in standing.machine.run("dnsguard", "status").stdout
    standing.machine.write("/etc/dnsguard/config.yaml", good)
    standing.machine.systemctl("reload", UNIT)
    assert "refused" not in status(standing)


def test_a_query_that_comes_while_no_daemon_runs_is_answered_by_the_next(standing: Host) -> None:
    scene = standing.scene
    standing.machine.systemctl("stop", UNIT)
    with scene.client(scene.a, ANY_RESOLVER, stream=True) as waiting:
        waiting.settimeout(PATIENCE)
        question = bytes(DNSRecord.question("db.example.com").pack())

        assert addresses(exchange(waiting, question, True)) == [DB]

    standing.until(standing.daemon.ready)  # started by the query


def test_between_two_daemons_nobody_can_change_the_table(host: Host) -> None:
    """On kernels where a table can have an owner: systemd keeps the owner's port."""
    machine, killed = host.machine, host.daemon.pid
    before = machine.shell("nft list chain inet dnsguard pod")
    # long enough to be sure that none has come back yet
    machine.write(f"/run/systemd/system/{UNIT}.d/slow.conf", "[Service]\nRestartSec=3\n")
    machine.systemctl("daemon-reload")
    host.daemon.signal(signal.SIGKILL)
    host.until(lambda: host.daemon.pid == 0)

    machine.run("nft", "flush", "ruleset", check=False)
    refused = machine.run("nft", "delete", "table", "inet", "dnsguard", check=False)

    assert host.daemon.pid == 0
    assert "Operation not permitted" in refused.stderr
    assert machine.shell("nft list chain inet dnsguard pod") == before
    host.until(host.daemon.ready)
    assert host.daemon.pid != killed
    assert "Operation not permitted" in machine.run("nft", "delete", "table", "inet", "dnsguard", check=False).stderr


def test_a_port_of_another_number_is_listened_on_and_kept_and_the_unit_s_sockets_are_told_to_be_unused(
    image: Path,
) -> None:
    with hosting([image], dns={"listenPort": 15400}) as host:
        told = host.machine.shell("journalctl -u dnsguard.service -o cat")
        assert told.count("dnsguard.socket is not used") == 4
        assert "UDP 0.0.0.0 port 15353: dns.listenPort is 15400" in told
        assert host.machine.show(UNIT, "NFileDescriptorStore")["NFileDescriptorStore"] == "5"  # and the table's owner
        inodes = host.machine.shell("ss -Hlnue 'sport = 15400'")

        host.machine.systemctl("restart", UNIT)

        assert {line.split("ino:")[1].split()[0] for line in inodes.splitlines()} == {
            line.split("ino:")[1].split()[0] for line in host.machine.shell("ss -Hlnue 'sport = 15400'").splitlines()
        }
        assert host.scene.resolve(host.scene.a, "db.example.com") == [DB]


def test_a_configuration_that_cannot_be_used_is_tried_again_without_end_and_the_pods_stay_closed(host: Host) -> None:
    scene = host.scene
    good = host.machine.read("/etc/dnsguard/config.yaml")
    host.machine.write("/etc/dnsguard/config.yaml", "upstreams: [nonsense]\n")
    host.machine.systemctl("restart", UNIT, check=False)

    host.until(lambda: int(host.machine.show(UNIT, "NRestarts")["NRestarts"]) >= 3, 40)

    host.until(lambda: "this one waits 3 s; the last said: /etc/dnsguard/config.yaml:1:13: " in waiting(host))
    (told,) = host.machine.journal(f"_SYSTEMD_UNIT={UNIT}", "PRIORITY=3")
    assert told["DNSGUARD_EVENT"] == "start_failed"
    assert told["MESSAGE"].startswith("dnsguard ends: /etc/dnsguard/config.yaml:1:13: error:")
    assert scene.silent(scene.a, "db.example.com")
    assert not scene.opens(scene.a, DB)
    host.machine.write("/etc/dnsguard/config.yaml", good)
    host.until(host.daemon.ready)
    assert answered_again(host) == [DB]
    killed = host.daemon.pid
    host.daemon.signal(signal.SIGKILL)
    host.until_replaced(killed)
    assert not (host.machine.root / "run/dnsguard/starts").exists()  # one that got ready has ended the count


def test_a_start_that_waits_for_its_turn_is_stopped_at_once_and_then_starts_at_once(host: Host) -> None:
    good = host.machine.read("/etc/dnsguard/config.yaml")
    host.machine.write("/etc/dnsguard/config.yaml", "upstreams: [nonsense]\n")
    host.machine.systemctl("restart", UNIT, check=False)
    host.until(lambda: "this one waits 3 s" in waiting(host), 40)
    host.machine.write("/etc/dnsguard/config.yaml", good)

    host.machine.systemctl("restart", UNIT)

    assert host.daemon.ready()


def test_a_daemon_that_was_killed_is_told_of_once_by_the_next_and_an_operator_s_unit_is_started(host: Host) -> None:
    machine = host.machine
    machine.write("/run/systemd/system/oncall.service", "[Service]\nExecStart=/bin/sh -c 'echo >>/run/called'\n")
    machine.write(f"/run/systemd/system/{UNIT}.d/oncall.conf", f"[Service]\n{example('ExecStopPost=+')}\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", UNIT)
    assert not (machine.root / "run/called").exists()

    killed = host.daemon.pid
    host.daemon.signal(signal.SIGKILL)
    host.until_replaced(killed)
    machine.systemctl("restart", UNIT)

    (told,) = machine.journal("DNSGUARD_EVENT=ended_badly")
    assert (told["DNSGUARD_REASON"], told["PRIORITY"]) == ("it was killed by SIGKILL", "3")
    host.until(lambda: machine.read("/run/called") == "\n")
    machine.write("/etc/dnsguard/config.yaml", "upstreams: [nonsense]\n")
    machine.systemctl("restart", UNIT, check=False)
    host.until(lambda: machine.read("/run/called").startswith("\n\n"))
