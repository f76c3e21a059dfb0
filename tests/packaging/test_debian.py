"""What the Debian package's own files must agree on with the code, and the script that cleans the kernel without it."""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard import __version__
from dnsguard.core.model import LinkIndex
from dnsguard.demo.lab import Lab
from dnsguard.enforce.bpf.clsact import HANDLES, PREFERENCE
from dnsguard.enforce.bpf.hooks import EGRESS, HOOKS, INGRESS
from dnsguard.enforce.nftables.session import TABLE
from dnsguard.node.routing import OUR_PROTOCOL
from tests.node.ebpf.stage import ALLOW, DROP, bpffs, program, programs, wait_until
from tests.node.ebpf.test_bpf_attach import Place, filter_of_another
from tests.node.nftables_lab import inside

ROOT = Path(__file__).parents[2]
POSTRM = (ROOT / "packaging/debian/dnsguard.postrm").read_text()


def test_a_release_has_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = re.match(r"dnsguard \((.+?)\)", (ROOT / "packaging/debian/changelog").read_text())

    assert released is not None
    assert {project["version"], __version__, released[1]} == {__version__}


def test_the_purge_looks_for_what_the_code_makes() -> None:
    assert f"nft delete table inet {TABLE} " in POSTRM
    assert f"protocol {OUR_PROTOCOL} " in POSTRM
    assert f"proto {OUR_PROTOCOL} " in POSTRM
    assert f"pref {PREFERENCE} " in POSTRM
    assert " ".join(map(hex, HANDLES)) in POSTRM


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("dgtest") as made:
        yield made


@pytest.mark.node
@pytest.mark.parametrize("tcx", [True, False], ids=["tcx", "clsact"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "alone"])
def test_the_purge_takes_every_program_off_the_links_and_leaves_those_of_others(
    lab: Lab, tcx: bool, shared: bool
) -> None:
    with bpffs() as folder, inside(lab.node):
        place = Place(lab, folder)
        attachments = place.attachments(programs(DROP), tcx)
        attachments.attach(LinkIndex(socket.if_nametoindex(place.name)), place.name)
        place.close()  # as after the daemon's end: the pins alone hold them
        if shared:
            (folder / "another").mkdir()
            for hook in HOOKS:
                filter_of_another(place, hook, program(ALLOW, "other"), preference=9)
        assert not place.reaches()

        functions = POSTRM.partition("\nif [")[0]
        lab.run(lab.node, "sh", "-c", f'{functions}\nclean_kernel "$1"', "postrm", str(folder))

        wait_until(place.reaches)  # the kernel lets go of a link a moment after its pin
        assert [one.name for one in folder.iterdir()] == ["another"] if shared else not folder.exists()
        assert [place.filters(hook) for hook in (INGRESS, EGRESS)] == (
            [["other ingress"], ["other egress"]] if shared else [[], []]
        )
        assert ("clsact" in place.tc("qdisc", "show", "dev", place.name)) == shared
