"""`dnsguard explain` of a running daemon: what was denied before, the rule that came nearest, and the line to add.

of one pod, the newest first .............................. every_denial_...
beside a verdict .......................................... a_name_..., an_address_..., a_lease_...
the advice is right ....................................... what_is_advised_...
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.node.daemon import wait_for
from tests.node.scene import DB, OTHER, PORT, WRONG_PORT, Scene, playing

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A daemon that writes no line about a denied query."""
    log = {"format": "json", "queries": "None"}
    with playing(tmp_path_factory.mktemp("past"), log=log) as scene:
        yield scene


def explained(scene: Scene, *question: str) -> list[dict[str, Any]]:
    done = scene.daemon.call("explain", *question, "--json")
    assert done.returncode in (0, 3), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def denied(scene: Scene, pod: str) -> dict[str, dict[str, Any]]:
    return {row["subject"]: row for row in explained(scene, pod)}


def test_every_denial_of_a_pod_is_listed_with_the_newest_first(scene: Scene) -> None:
    scene.ask(scene.b, "first.example.com")
    scene.ask(scene.b, "second.example.com", "AAAA")
    wait_for(lambda: not scene.opens(scene.b, OTHER) and f"{OTHER} tcp/{PORT}" in denied(scene, "shop/b"), 10)

    rows = explained(scene, "shop/b")

    assert [row["subject"] for row in rows] == [
        f"{OTHER} tcp/{PORT}",
        "second.example.com AAAA",
        "first.example.com A",
    ]
    assert all(row["add"]["text"] for row in rows)
    assert scene.daemon.call("explain", "shop/b").returncode == 3


def test_a_name_that_was_denied_says_how_often_and_what_came_nearest(scene: Scene) -> None:
    for kind in ("A", "AAAA", "A"):
        scene.ask(scene.a, "fresh.example.com", kind)

    (told,) = explained(scene, "shop/a", "fresh.example.com")

    past = {row["subject"]: row["count"] for row in told["past"]}
    assert past == {"fresh.example.com A": 2, "fresh.example.com AAAA": 1}
    assert (told["nearest"][0]["miss"], told["nearest"][0]["peer"]) == ("apex", "*.fresh.example.com")


def test_an_address_that_a_name_opened_on_another_port_names_the_rule(scene: Scene) -> None:
    scene.resolve(scene.a, "db.example.com")
    assert not scene.opens(scene.a, DB, WRONG_PORT)

    (told,) = explained(scene, "shop/a", DB, str(WRONG_PORT))

    assert (told["nearest"][0]["miss"], told["nearest"][0]["peer"]) == ("port", "db.example.com")
    assert "domainNames: [db.example.com]" in told["add"]["text"]
    wait_for(lambda: f"{DB} tcp/{WRONG_PORT}" in denied(scene, "shop/a"), 10)
    (by_name,) = explained(scene, "shop/a", "db.example.com")
    assert by_name["verdict"] == "allowed"
    assert [row["subject"] for row in by_name["past"]] == [f"{DB} tcp/{WRONG_PORT}"]


def test_a_lease_that_ended_is_named_and_needs_no_rule(scene: Scene) -> None:
    scene.zone.put("n.fresh.example.com", "A", "198.18.0.77", ttl=1)
    scene.resolve(scene.a, "n.fresh.example.com")
    wait_for(lambda: not scene.lease_left("198.18.0.77"), 10)

    (told,) = explained(scene, "shop/a", "198.18.0.77", str(PORT))

    assert told["reason"].startswith("the lease of n.fresh.example.com ended")
    assert (told["nearest"][0]["miss"], told["add"]) == ("ended", None)


def test_people_read_each_denial_with_its_line(scene: Scene) -> None:
    scene.ask(scene.a, "dc.example.com")

    out = scene.daemon.call("explain", "shop/a").stdout

    told = r"denied: dc\.example\.com A\ntimes:  1, last \d+s ago\nreason: no rule allows this name\n"
    assert re.search(told, out)
    assert "db.example.com is one letter away" in out
    assert "to allow it, insert before" in out


def test_what_is_advised_allows_the_name_after_a_reload(scene: Scene) -> None:
    scene.ask(scene.a, "mail.example.com")
    (told,) = explained(scene, "shop/a", "mail.example.com")
    insert(told["add"])

    scene.daemon.call("reload").check_returncode()

    assert scene.resolve(scene.a, "mail.example.com")
    (after,) = explained(scene, "shop/a", "mail.example.com")
    assert (after["verdict"], [row["count"] for row in after["past"]]) == ("allowed", [1])


def insert(addition: dict[str, Any]) -> None:
    file, at, column = Path(addition["file"]), addition["line"] - 1, addition["column"] - 1
    lines = file.read_text().splitlines(keepends=True)
    lines[at] = lines[at][:column] + addition["text"] + lines[at][column:]
    file.write_text("".join(lines))


def test_in_audit_what_would_have_been_denied_is_told_the_same_way(tmp_path: Path) -> None:
    with playing(tmp_path, mode="Audit", log={"format": "json", "queries": "None"}) as scene:
        scene.ask(scene.a, "other.example.com")
        assert scene.opens(scene.a, OTHER)
        wait_for(lambda: f"{OTHER} tcp/{PORT}" in denied(scene, "shop/a"), 10)
        rows = denied(scene, "shop/a")
        out = scene.daemon.call("explain", "shop/a").stdout

    assert rows["other.example.com A"]["event"] == "query_audited"
    assert rows[f"{OTHER} tcp/{PORT}"]["event"] == "flow_audited"
    assert all(row["add"] for row in rows.values())
    assert "audited: other.example.com A\n" in out
