"""`dnsguard check --system` under a real systemd and a real journald."""

from __future__ import annotations

import json

import pytest

from tests.host.host import UNIT, Host

pytestmark = pytest.mark.node

KUBELET = "[Service]\nExecStart=/bin/sleep infinity\n"


def examined(host: Host) -> dict[str, dict[str, str]]:
    """Its findings, by what was looked at."""
    done = host.machine.run("dnsguard", "check", "--system", "--json", check=False)
    assert done.returncode in (0, 1, 77), done.stderr
    return {row["subject"]: row for row in map(json.loads, done.stdout.splitlines())}


def test_a_node_with_the_service_is_in_order_but_for_what_was_not_enabled(host: Host) -> None:
    host.machine.systemctl("disable", UNIT, check=False)
    before = examined(host)
    host.machine.systemctl("enable", UNIT)
    after = examined(host)

    assert (before[UNIT]["level"], before[UNIT]["remedy"]) == ("problem", f"systemctl enable {UNIT}")
    assert after[UNIT]["level"] == "ok"
    assert after["journald"]["level"] == "ok"
    assert after["capabilities"]["level"] == "ok"
    assert after["a pod's query over UDP and IPv4"]["found"] == "reached the daemon, and the reply the pod"


def test_a_stopped_socket_and_a_service_that_cannot_start_are_told(host: Host) -> None:
    host.machine.systemctl("enable", UNIT)
    host.machine.systemctl("stop", "dnsguard.socket")

    idle = examined(host)["dnsguard.socket"]

    assert idle["level"] == "warning"
    host.machine.shell(idle["remedy"])

    host.machine.write("/etc/dnsguard/config.yaml", "mdoe: Audit\n")
    host.machine.systemctl("restart", UNIT, check=False)
    host.machine.shell(f"until [ $(systemctl show --value --property=NRestarts {UNIT}) -gt 0 ]; do sleep 0.05; done")
    failing = examined(host)

    assert failing["dnsguard.socket"]["level"] == "ok"
    assert failing["dns.listenPort"]["found"].startswith("15353 is held by dnsguard.socket")
    assert failing[UNIT]["level"] == "problem"
    assert "is started again" in failing[UNIT]["found"]


def test_a_stopped_journald_and_a_kubelet_without_order_are_told(host: Host) -> None:
    host.machine.write("/etc/systemd/system/kubelet.service", KUBELET.replace("[S", f"[Unit]\nAfter={UNIT}\n[S"))
    host.machine.systemctl("daemon-reload")
    assert examined(host)["boot order"]["level"] == "ok"

    sockets = ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket")
    host.machine.systemctl("stop", *sockets, "systemd-journald.service", check=False)
    host.machine.run("rm", "-f", "/run/systemd/journal/socket")

    assert examined(host)["journald"]["level"] == "warning"


def test_a_service_that_failed_is_a_problem(host: Host) -> None:
    host.machine.write(f"/etc/systemd/system/{UNIT}.d/broken.conf", "[Service]\nRestart=no\n")
    host.machine.systemctl("daemon-reload")
    host.machine.systemctl("kill", "--signal=KILL", UNIT)
    host.machine.run("sh", "-ec", f"until systemctl is-failed --quiet {UNIT}; do sleep 0.05; done")

    assert examined(host)[UNIT] == {
        "level": "problem",
        "subject": UNIT,
        "found": "has failed",
        "remedy": f"systemctl status {UNIT}",
    }
