"""Programs on pod links, both ways to attach them: first in line, put first again, and other people's left alone."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dnsguard.core.errors import KernelError, MissingFeatureError
from dnsguard.core.model import LinkIndex
from dnsguard.demo.lab import Lab
from dnsguard.enforce.bpf import syscall
from dnsguard.enforce.bpf.attach import Attachments, remove_all
from dnsguard.enforce.bpf.hooks import EGRESS, HOOKS, INGRESS, Hook
from dnsguard.enforce.bpf.tcx import has_tcx
from tests.node.ebpf.stage import ALLOW, DROP, OK, bpffs, program, programs, wait_until
from tests.node.nftables_lab import inside

pytestmark = pytest.mark.node

POD = "10.244.0.5"
PORT = 4000
FLOOD = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("{POD}", 0))
print("on", flush=True)
while True:
    try:
        s.sendto(b"?", ("10.99.0.1", {PORT}))
    except OSError:
        pass
"""


class Place:
    """A pod's link on a node, whose network namespace this thread is in, and where its pins go."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        folder.mkdir()
        self.pod = lab.pod("a", POD)
        self.name = self.pod.link
        self.link = LinkIndex(socket.if_nametoindex(self.name))
        self._opened: list[Attachments] = []

    def attachments(self, programs: Mapping[str, int], tcx: bool) -> Attachments:
        self._opened.append(Attachments(programs, self.folder, tcx))
        return self._opened[-1]

    def close(self) -> None:
        for each in self._opened:
            each.close()

    def tc(self, *words: str) -> str:
        return self.lab.run(self.lab.node, "tc", *words, check=False).stdout

    def filters(self, hook: Hook, name: str | None = None) -> list[str]:
        """Names of the bpf filters and kinds of the others, in the order that packets meet them."""
        listed = json.loads(self.tc("-j", "filter", "show", "dev", name or self.name, hook.name) or "[]")
        options = [(each["kind"], each["options"]) for each in listed if "options" in each]
        return [each.get("bpf_name", kind) for kind, each in options if "handle" in each]

    def order(self, hook: Hook) -> list[int]:
        return [each.program for each in syscall.prog_query(self.link, hook.tcx)]

    def reaches(self) -> bool:
        """Whether a packet of the pod comes to the node."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
            here.bind(("10.99.0.1", 0))
            with self.lab.socket(self.pod.namespace, socket.AF_INET) as there:
                there.sendto(b"?", here.getsockname())
            # loopback and veth deliver within sendto, but for a busy machine's softirq thread
            return bool(select.select([here], [], [], 0.3)[0])


@pytest.fixture
def place(lab: Lab) -> Iterator[Place]:
    with bpffs() as folder, inside(lab.node):
        found = Place(lab, folder)
        try:
            yield found
        finally:
            found.close()


@pytest.fixture(params=[True, False], ids=["tcx", "clsact"])
def tcx(request: pytest.FixtureRequest) -> bool:
    if request.param and not has_tcx():
        pytest.skip("this kernel has no tcx")
    return bool(request.param)


def number(fd: int) -> int:
    return syscall.prog_info(fd).number


def first(place: Place, hook: Hook, tcx: bool) -> str | int:
    return place.order(hook)[0] if tcx else place.filters(hook)[0]


def ours(programs: Mapping[str, int], hook: Hook, tcx: bool) -> str | int:
    return number(programs[hook.program]) if tcx else f"dnsguard {hook.program}"


def get_before(place: Place, verdict: int, tcx: bool) -> int:
    """Another's program before ours in both directions, instead of one that was there; returns its descriptor."""
    other = program(verdict, "other")
    for hook in HOOKS:
        if tcx:
            leave(place, hook)
            fd = syscall.link_create(other, place.link, hook.tcx)
            syscall.pin(fd, place.folder / f"other-{hook.name}")
            os.close(fd)
        else:
            place.tc("filter", "del", "dev", place.name, hook.name, "pref", "1", "handle", "1", "bpf")
            filter_of_another(place, hook, other, preference=1)
    return other


def leave(place: Place, hook: Hook) -> None:
    """Another's program goes, by tcx."""
    pin = place.folder / f"other-{hook.name}"
    if pin.exists():
        fd = syscall.get_pinned(pin)
        pin.unlink()
        syscall.link_detach(fd)
        os.close(fd)


def filter_of_another(place: Place, hook: Hook, fd: int, preference: int, handle: int = 1) -> None:
    with IPRoute() as route:
        with suppress(NetlinkError):
            route.tc("add", "clsact", place.link)
        where = {"parent": hook.clsact, "prio": preference, "protocol": 3, "class_id": 1, "direct_action": True}
        route.tc("replace-filter", "bpf", place.link, handle, fd=fd, name=f"other {hook.name}", **where)


def test_the_programs_are_put_on_both_sides_of_a_link(place: Place, tcx: bool) -> None:
    given = programs()
    attachments = place.attachments(given, tcx)
    attachments.attach(place.link, place.name)
    assert attachments.effective
    assert attachments.tcx is tcx
    assert [first(place, hook, tcx) for hook in HOOKS] == [ours(given, hook, tcx) for hook in HOOKS]
    assert attachments.verify() == []


def test_a_packet_meets_the_program(place: Place, tcx: bool) -> None:
    assert place.reaches()
    place.attachments(programs(DROP), tcx).attach(place.link, place.name)
    assert not place.reaches()


def test_the_programs_stay_when_the_process_is_gone(place: Place, tcx: bool) -> None:
    given = programs(DROP)
    attachments = place.attachments(given, tcx)
    attachments.attach(place.link, place.name)
    for fd in given.values():
        os.close(fd)
    attachments.close()
    assert not place.reaches()


def test_the_next_process_puts_its_programs_in_the_place_of_the_earlier(place: Place, tcx: bool) -> None:
    place.attachments(programs(DROP), tcx).attach(place.link, place.name)
    given = programs()
    attachments = place.attachments(given, tcx)
    attachments.attach(place.link, place.name)
    assert [place.order(hook) for hook in HOOKS if tcx] == [[number(given[hook.program])] for hook in HOOKS if tcx]
    assert [place.filters(hook) for hook in HOOKS if not tcx] == [
        [f"dnsguard {hook.program}"] for hook in HOOKS if not tcx
    ]
    assert place.reaches()
    assert attachments.verify() == []


def test_attaching_again_changes_nothing(place: Place, tcx: bool) -> None:
    attachments = place.attachments(programs(), tcx)
    attachments.attach(place.link, place.name)
    attachments.attach(place.link, place.name)
    assert attachments.verify() == []
    assert len(place.order(INGRESS)) == tcx
    assert len(place.filters(INGRESS)) == (not tcx)


def test_who_got_before_ours_is_behind_it_again_and_stays(place: Place, tcx: bool) -> None:
    given = programs()
    attachments = place.attachments(given, tcx)
    attachments.attach(place.link, place.name)
    other = get_before(place, OK, tcx)
    wrong = attachments.verify()
    assert [each.split(": ")[1].split(" was behind ")[0] for each in wrong] == ["from_pod", "to_pod"]
    assert attachments.effective
    for hook in HOOKS:
        there = place.order(hook) if tcx else place.filters(hook)
        assert there == [ours(given, hook, tcx), number(other) if tcx else f"other {hook.name}"]
    assert attachments.verify() == []


def test_it_is_put_first_as_often_as_someone_gets_before_it(place: Place, tcx: bool) -> None:
    given = programs()
    attachments = place.attachments(given, tcx)
    attachments.attach(place.link, place.name)
    for _ in range(3):
        get_before(place, ALLOW, tcx)
        assert len(attachments.verify()) == 2
        assert [first(place, hook, tcx) for hook in HOOKS] == [ours(given, hook, tcx) for hook in HOOKS]


def test_what_someone_removed_is_put_back(place: Place, tcx: bool) -> None:
    attachments = place.attachments(programs(DROP), tcx)
    attachments.attach(place.link, place.name)
    if tcx:
        for hook in HOOKS:
            (place.folder / "links" / f"{place.link}-{hook.name}").unlink()
        wait_until(lambda: not place.order(INGRESS))
    else:
        place.tc("qdisc", "del", "dev", place.name, "clsact")
    assert place.reaches()
    assert attachments.verify() == [f"{place.name}: from_pod was gone", f"{place.name}: to_pod was gone"]
    assert attachments.effective
    assert not place.reaches()


def test_a_program_in_place_of_ours_is_replaced(place: Place, tcx: bool) -> None:
    given = programs(DROP)
    attachments = place.attachments(given, tcx)
    attachments.attach(place.link, place.name)
    other = program(OK, "other")
    if tcx:
        held = syscall.get_pinned(place.folder / "links" / f"{place.link}-ingress")
        syscall.link_update(held, other)
        os.close(held)
    else:
        filter_of_another(place, INGRESS, other, preference=1, handle=0xD95)
    assert attachments.verify() == [f"{place.name}: from_pod was program {number(other)}"]
    assert not place.reaches()


def test_programs_behind_ours_decide_on_what_it_lets_pass(place: Place, tcx: bool) -> None:
    place.attachments(programs(), tcx).attach(place.link, place.name)
    assert place.reaches()
    filter_of_another(place, INGRESS, program(DROP), preference=9)
    assert not place.reaches()


def test_no_packet_slips_through_while_programs_take_turns(place: Place, tcx: bool) -> None:
    """Ours drop everything. Meanwhile they are replaced, and put first again before one that lets everything pass."""
    place.attachments(programs(DROP), tcx).attach(place.link, place.name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind(("10.99.0.1", PORT))
        here.setblocking(False)
        flood = place.lab.popen(place.pod.namespace, sys.executable, "-c", FLOOD, stdout=-1)
        assert flood.stdout
        flood.stdout.readline()
        flood.stdout.close()
        for _ in range(20):
            given = programs(DROP)
            attachments = place.attachments(given, tcx)
            attachments.attach(place.link, place.name)
            other = get_before(place, ALLOW, tcx)
            assert len(attachments.verify()) == 2
            for fd in (other, *given.values()):
                os.close(fd)
        with pytest.raises(BlockingIOError):
            here.recv(10)
        os.killpg(flood.pid, signal.SIGTERM)


def test_the_flood_comes_through_when_nothing_stops_it(place: Place) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind(("10.99.0.1", PORT))
        here.settimeout(5)
        flood = place.lab.popen(place.pod.namespace, sys.executable, "-c", FLOOD)
        assert here.recv(10) == b"?"
        os.killpg(flood.pid, signal.SIGTERM)


def test_detaching_leaves_what_others_have_on_the_link(place: Place, tcx: bool) -> None:
    filter_of_another(place, INGRESS, program(ALLOW), preference=9)
    attachments = place.attachments(programs(DROP), tcx)
    attachments.attach(place.link, place.name)
    attachments.detach(place.link)
    assert place.order(INGRESS) == []
    assert place.filters(INGRESS) == ["other ingress"]
    assert place.reaches()
    assert attachments.verify() == []
    assert not [*(place.folder / "links").glob("*")]


def test_detaching_takes_away_a_qdisc_that_was_ours_alone(place: Place) -> None:
    attachments = place.attachments(programs(), False)
    attachments.attach(place.link, place.name)
    assert "clsact" in place.tc("qdisc", "show", "dev", place.name)
    attachments.detach(place.link)
    assert "clsact" not in place.tc("qdisc", "show", "dev", place.name)


def test_a_qdisc_of_ours_stays_while_anothers_filter_is_in_it(place: Place) -> None:
    attachments = place.attachments(programs(), False)
    attachments.attach(place.link, place.name)
    filter_of_another(place, INGRESS, program(ALLOW), preference=9)
    attachments.detach(place.link)
    assert place.filters(INGRESS) == ["other ingress"]


def test_cleanup_removes_what_is_ours_and_only_that(place: Place, tcx: bool) -> None:
    place.lab.pod("b", "10.244.0.6")
    place.tc("qdisc", "add", "dev", "veth-b", "clsact")
    attachments = place.attachments(programs(DROP), tcx)
    attachments.attach(place.link, place.name)
    attachments.attach(LinkIndex(socket.if_nametoindex("veth-b")), "veth-b")
    other = get_before(place, ALLOW, tcx)
    for hook in HOOKS:
        if tcx:
            (place.folder / f"other-{hook.name}").rename(place.folder.parent / f"other-{hook.name}")
    remove_all(place.folder)
    assert not place.folder.exists()
    if tcx:
        assert place.order(INGRESS) == [number(other)]
    else:
        assert place.filters(INGRESS) == ["other ingress"]
        assert place.filters(EGRESS) == ["other egress"]
    assert "clsact" in place.tc("qdisc", "show", "dev", "veth-b")
    assert place.filters(INGRESS, "veth-b") == []
    assert place.reaches()


def test_cleanup_where_nothing_was_is_no_error(place: Place) -> None:
    remove_all(place.folder / "nowhere")


def test_a_tcx_program_before_a_filter_of_ours_is_told_and_not_effective(place: Place) -> None:
    if not has_tcx():
        pytest.skip("this kernel has no tcx")
    attachments = place.attachments(programs(), False)
    attachments.attach(place.link, place.name)
    other = get_before(place, ALLOW, tcx=True)
    assert attachments.verify() == []
    assert not attachments.effective
    assert attachments.failures == {place.name: f"program {number(other)} stands before from_pod by tcx"}
    for hook in HOOKS:
        leave(place, hook)
    assert attachments.verify() == []
    assert attachments.effective


def test_a_preference_that_is_taken_by_another_kind_of_filter_is_told(place: Place) -> None:
    place.tc("qdisc", "add", "dev", place.name, "clsact")
    place.tc("filter", "add", "dev", place.name, "ingress", "pref", "1", "u32", "match", "u32", "0", "0")
    attachments = place.attachments(programs(), False)
    with pytest.raises(KernelError, match="preference 1 is taken"):
        attachments.attach(place.link, place.name)
    assert not attachments.effective
    assert place.filters(EGRESS) == ["dnsguard to_pod"]
    place.tc("filter", "del", "dev", place.name, "ingress")
    assert attachments.verify() == [f"{place.name}: from_pod was gone"]
    assert attachments.effective


def test_a_link_that_is_no_ethernet_is_refused_by_its_name(place: Place, tcx: bool) -> None:
    place.lab.ip(place.lab.node, "tuntap add dgtun0 mode tun")
    attachments = place.attachments(programs(), tcx)
    with pytest.raises(MissingFeatureError, match="dgtun0 is no Ethernet link"):
        attachments.attach(LinkIndex(socket.if_nametoindex("dgtun0")), "dgtun0")
    assert attachments.effective


def test_links_that_come_and_go_leave_nothing_behind(place: Place, tcx: bool) -> None:
    attachments = place.attachments(programs(), tcx)
    attachments.attach(place.link, place.name)
    ended = threading.Event()
    batch = "".join(f"link add dgx{n} type veth peer name dgy{n}\nlink del dgx{n}\n" for n in range(200))

    def come_and_go() -> None:
        try:
            place.lab.run(place.lab.node, "ip", "-batch", "-", input=batch)
        finally:
            ended.set()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    attached = 0
    while not ended.is_set():
        for index, name in socket.if_nameindex():
            if name.startswith("dgx"):
                attachments.attach(LinkIndex(index), name)
                attached += 1
    thread.join()
    assert attached
    assert attachments.verify() == []
    assert attachments.effective
    left = {path.name.split("-")[0] for path in (place.folder / "links").iterdir()}
    assert left == {str(place.link)}


def test_pins_of_links_that_vanished_while_nobody_ran_are_swept(place: Place, tcx: bool) -> None:
    attachments = place.attachments(programs(), tcx)
    attachments.attach(place.link, place.name)
    attachments.close()
    place.lab.remove_pod(place.pod)
    assert [*(place.folder / "links").iterdir()]
    place.attachments(programs(), tcx)
    assert not [*(place.folder / "links").iterdir()]
