"""`dnsguard close`: pod links are closed before there is a daemon, and what is in force is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnsguard.demo.lab import Lab
from tests.node.daemon import PROGRAM
from tests.node.scene import DB, Scene, playing, world

pytestmark = pytest.mark.node


def close(lab: Lab, config: Path, text: str) -> int:
    config.write_text(text)
    return lab.run(lab.node, *PROGRAM, "close", "--config", str(config), check=False).returncode


def reaches(lab: Lab, namespace: str) -> bool:
    with lab.socket(namespace, 2, 1) as client:
        client.settimeout(0.8)
        return client.connect_ex((DB, 8080)) == 0


def test_the_links_of_the_configuration_are_closed_and_no_others(lab: Lab, tmp_path: Path) -> None:
    pod, other = lab.pod("a", "10.244.0.5"), lab.pod("b", "10.244.0.6", link="tap-b")
    with world(lab):
        assert reaches(lab, pod.namespace)

        assert close(lab, tmp_path / "config.yaml", "upstreams: [10.99.0.2]\npods: {interfaces: [veth-*]}\n") == 0

        assert not reaches(lab, pod.namespace)
        assert reaches(lab, other.namespace)


def test_without_a_usable_configuration_the_usual_links_are_closed_and_it_is_said(lab: Lab, tmp_path: Path) -> None:
    pod = lab.pod("a", "10.244.0.5")
    with world(lab):
        assert close(lab, tmp_path / "config.yaml", "upstreams: [nonsense]\n") == 1

        assert not reaches(lab, pod.namespace)


def test_what_is_right_in_a_configuration_with_errors_says_which_links_are_closed(lab: Lab, tmp_path: Path) -> None:
    pod, other = lab.pod("a", "10.244.0.5"), lab.pod("b", "10.244.0.6", link="tap-b")
    with world(lab):
        assert close(lab, tmp_path / "config.yaml", "pods: {interfaces: [tap-*]}\nnonsense: 1\n") == 1

        assert not reaches(lab, other.namespace)
        assert reaches(lab, pod.namespace)


def test_a_table_in_force_is_left_as_it_is(tmp_path: Path) -> None:
    with playing(tmp_path) as scene:
        assert _resolves_and_opens(scene)

        assert scene.daemon.call("close").returncode == 0

        assert scene.opens(scene.a, DB)


def _resolves_and_opens(scene: Scene) -> bool:
    return scene.resolve(scene.a, "db.example.com") == [DB] and scene.opens(scene.a, DB)
