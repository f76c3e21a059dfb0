"""Audit on a real node: everything passes and is told of, `learn` writes the allowlist, and a reload enforces it.

nothing is denied, all is told ............................ audit_lets_everything_through_..., what_passes_...
learn -> Enforce: the same traffic passes, no other ....... what_was_learned_is_enforced_...
open flows, before and after .............................. what_was_learned_is_enforced_...
what was seen outlives a restart; learn without a daemon .. what_was_seen_outlives_...
back to Audit ............................................. going_back_to_audit_...
a bad file, keys that need a restart ...................... a_configuration_with_errors_..., a_key_that_needs_...
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.node.daemon import wait_for
from tests.node.scene import DB, DB6, MAIL, OTHER, PORT, WRONG_PORT, A, B, Scene, playing, rcode

pytestmark = pytest.mark.node

EMPTY: dict[str, Any] = {"policies": {}, "pods": {A: {"name": "shop/a", "policies": []}, B: []}}
BARE = "198.18.0.99"
"""Where a pod connects without asking for a name."""

METADATA = "169.254.169.254"


BOTH = pytest.mark.parametrize("scene", ["Auto", "Off"], ids=["both lines", "nftables alone"], indirect=True)


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    ebpf = getattr(request, "param", "Auto")
    with playing(tmp_path, allowlist=EMPTY, mode="Audit", enforcement={"ebpf": ebpf}) as made:
        yield made


def configure(scene: Scene, **changes: Any) -> None:
    content = yaml.safe_load(scene.daemon.config.read_text())
    scene.daemon.config.write_text(yaml.safe_dump({**content, **changes}))


def learned(scene: Scene) -> dict[str, Any]:
    """What `learn` prints, put in the allowlist's place."""
    done = scene.daemon.call("learn")
    assert done.returncode == 0, done.stderr
    (scene.daemon.folder / "allowlist.yaml").write_text(done.stdout)
    assert scene.daemon.call("check").returncode == 0, done.stdout
    content: dict[str, Any] = yaml.safe_load(done.stdout)
    return content


@BOTH
def test_audit_lets_everything_through_and_tells_of_it(scene: Scene) -> None:
    assert scene.resolve(scene.a, "other.example.com") == [OTHER]
    assert scene.opens(scene.a, OTHER, WRONG_PORT)
    assert scene.opens(scene.b, BARE)

    name = scene.daemon.told("query_audited", pod="shop/a", name="other.example.com")
    flow = scene.daemon.told("flow_audited", pod="shop/a", address=OTHER)
    advised = scene.daemon.call("explain", "shop/a", "other.example.com", "--json").stdout
    assert f"ports: [{{protocol: TCP, port: {WRONG_PORT}}}]" in advised
    bare = scene.daemon.told("flow_audited", pod=B, address=BARE)
    assert name["verdict"] == flow["verdict"] == "audited"
    assert (flow["port"], flow["reason"]) == (
        WRONG_PORT,
        "other.example.com resolved to it: no policy selects this pod",
    )
    assert bare["reason"] == "never resolved"
    status = scene.daemon.ask("status")
    assert (status["mode"], status["denied"], status["audited"]) == ("Audit", 0, 1)
    wait_for(lambda: scene.daemon.ask("pods", pod="shop/a")[0]["audited"] >= 1, 8)
    assert not scene.daemon.events("flow_denied") and not scene.daemon.events("query_denied")


@BOTH
def test_what_was_learned_is_enforced_and_nothing_else(scene: Scene) -> None:
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    assert scene.resolve(scene.a, "db.example.com", "AAAA") == [DB6]
    assert scene.resolve(scene.a, "mail.example.com") == [MAIL]
    assert rcode(scene.ask(scene.a, "db.example.com.shop.svc.cluster.local")) == "NXDOMAIN"
    kept, bare = scene.connect(scene.a, DB), scene.connect(scene.b, BARE, WRONG_PORT)
    assert kept is not None and bare is not None and scene.opens(scene.a, DB6)
    content = learned(scene)
    # Not seen by learn: nothing will justify it.
    unjust = scene.connect(scene.a, OTHER)
    assert unjust is not None and unjust.alive()

    configure(scene, mode="Enforce")
    reloaded = scene.daemon.call("reload")

    assert reloaded.stdout.splitlines()[-1:] == ["mode Enforce is in force"], reloaded.stderr
    assert content["policies"]["shop/a"]["egress"] == [
        {"to": [{"domainNames": ["mail.example.com"]}], "ports": [{"protocol": "TCP", "port": 9}]},
        {"to": [{"domainNames": ["db.example.com"]}], "ports": [{"protocol": "TCP", "port": PORT}]},
    ]
    assert kept.alive() and bare.alive() and unjust.dead()
    # Open at once, without asking again.
    assert scene.opens(scene.a, DB) and scene.opens(scene.a, DB6) and scene.opens(scene.b, BARE, WRONG_PORT)
    assert scene.resolve(scene.a, "db.example.com") == [DB]
    assert scene.resolve(scene.a, "mail.example.com") == [MAIL]
    assert rcode(scene.ask(scene.a, "other.example.com")) == "NXDOMAIN"
    assert not scene.opens(scene.a, DB, WRONG_PORT)
    assert not scene.opens(scene.a, MAIL)
    assert not scene.opens(scene.b, BARE, PORT)
    assert not scene.opens(scene.a, OTHER)
    for flow in (kept, bare, unjust):
        flow.socket.close()


def test_what_was_seen_outlives_a_restart_and_is_told_without_a_daemon(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    assert scene.opens(scene.a, DB)
    before = scene.daemon.call("learn").stdout
    scene.daemon.stop()

    left = scene.daemon.call("learn")
    scene.daemon.start()
    after = scene.daemon.call("learn").stdout

    assert (left.returncode, left.stdout) == (0, before)
    assert "the daemon is not running" in left.stderr
    assert yaml.safe_load(after) == yaml.safe_load(before)


def test_a_state_file_that_is_damaged_is_set_aside(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    scene.daemon.call("learn")
    scene.daemon.stop()
    path = scene.daemon.folder / "state/seen.sqlite"
    path.write_bytes(b"SQLite format 3\0" + bytes(5000))

    scene.daemon.start()
    assert scene.resolve(scene.a, "mail.example.com") == [MAIL]
    said = scene.daemon.call("learn").stdout

    assert "mail.example.com" in said and "db.example.com" not in said
    assert "is now seen.unusable" in scene.daemon.told("seen_file_failed")["reason"]


@BOTH
def test_going_back_to_audit_opens_everything_at_once(scene: Scene) -> None:
    configure(scene, mode="Enforce")
    scene.daemon.call("reload").check_returncode()
    assert rcode(scene.ask(scene.a, "other.example.com")) == "NXDOMAIN"
    assert not scene.opens(scene.a, OTHER)

    configure(scene, mode="Audit")
    scene.daemon.call("reload").check_returncode()

    assert scene.resolve(scene.a, "other.example.com") == [OTHER]
    assert scene.opens(scene.a, OTHER)


def test_a_configuration_with_errors_changes_nothing(scene: Scene) -> None:
    configure(scene, mode="Enforce", nonsense=1)

    done = scene.daemon.call("reload")

    assert done.returncode == 1
    assert "unknown key 'nonsense'" in done.stderr
    assert scene.daemon.ask("status")["mode"] == "Audit"
    assert scene.resolve(scene.a, "other.example.com") == [OTHER]


def test_a_key_that_needs_a_restart_is_named_at_its_place(scene: Scene) -> None:
    configure(scene, cache={"entries": 7})

    done = scene.daemon.call("reload")

    assert done.returncode == 0
    assert f"{scene.daemon.config}:" in done.stderr
    assert "warning: cache.entries: takes effect at a restart" in done.stderr


def test_learn_as_json_is_one_pod_a_line(scene: Scene) -> None:
    scene.zone.put("db.example.com", "A", METADATA)
    scene.resolve(scene.a, "db.example.com")

    lines = scene.daemon.call("learn", "--json", "--pod", "shop/a").stdout.splitlines()

    (row,) = map(json.loads, lines)
    names = [(name["name"], name["withheld"]) for name in row["names"]]
    assert (row["pod"], names) == ("shop/a", [("db.example.com", METADATA)])


def test_a_restart_into_enforce_cuts_the_flows_that_nothing_justifies(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    kept = scene.connect(scene.a, DB)
    learned(scene)
    unjust = scene.connect(scene.a, OTHER)
    assert kept is not None and unjust is not None and unjust.alive()
    scene.daemon.stop()
    configure(scene, mode="Enforce")

    scene.daemon.start()

    assert kept.alive() and unjust.dead()
    for flow in (kept, unjust):
        flow.socket.close()


def test_what_is_learned_while_enforcing_allows_what_was_denied_too(tmp_path: Path) -> None:
    with playing(tmp_path) as scene:
        assert scene.resolve(scene.a, "db.example.com") == [DB]
        assert scene.opens(scene.a, DB)
        assert rcode(scene.ask(scene.a, "other.example.com")) == "NXDOMAIN"
        assert not scene.opens(scene.a, BARE, WRONG_PORT)
        scene.daemon.told("flow_denied", pod="shop/a", address=BARE)

        content = learned(scene)
        scene.daemon.signal(signal.SIGHUP)
        scene.daemon.told("policy_loaded", generation=2)

        assert content["policies"]["shop/a"]["egress"] == [
            {"to": [{"domainNames": ["other.example.com"]}], "ports": [{"protocol": "TCP", "port": 9}]},
            {"to": [{"domainNames": ["db.example.com"]}], "ports": [{"protocol": "TCP", "port": PORT}]},
            {"to": [{"ipBlock": {"cidr": f"{BARE}/32"}}], "ports": [{"protocol": "TCP", "port": WRONG_PORT}]},
        ]
        assert scene.resolve(scene.a, "other.example.com") == [OTHER]
        assert not scene.opens(scene.a, OTHER)
        assert scene.opens(scene.a, BARE, WRONG_PORT) and scene.opens(scene.a, DB)
