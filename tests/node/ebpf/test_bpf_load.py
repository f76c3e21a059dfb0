"""The shipped object on the real kernel: loaded, sized, taken over by the next process, refused with a reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsguard.core.errors import KernelError, MissingFeatureError
from dnsguard.core.model import Address
from dnsguard.enforce.bpf import layout, pins, syscall
from dnsguard.enforce.bpf.layout import U32, U64, LeaseKey
from dnsguard.enforce.bpf.load import load, shipped
from dnsguard.enforce.bpf.syscall import Map
from tests import elf
from tests.node.ebpf.stage import bpffs

pytestmark = pytest.mark.node

SIZES = {"leases": 500, "flows": 400, "answers": 10}
LEASES = {LeaseKey(5, number, Address(bytes([192, 0, 2, number]))).pack(): U64.pack(number) for number in range(100)}
EXIT = bytes([0x95]) + bytes(7)


@pytest.fixture
def folder() -> Iterator[Path]:
    with bpffs() as found:
        yield found


def leave_leases(folder: Path) -> None:
    """As an earlier process does."""
    loaded = load(folder, SIZES)
    loaded.maps["leases"].update_many([*LEASES], [*LEASES.values()])
    loaded.maps["ports"].update(layout.port_key(7, 6, 443), U64.pack(1))
    loaded.close()


def refused_object() -> bytes:
    """The shipped one, but a program ends without a verdict."""
    octets = shipped()
    start = elf.sections(octets)["tc"].offset
    return octets[:start] + EXIT + octets[start + len(EXIT) :]


def run(script: str, *around: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own that tells what error it got."""
    text = f"from pathlib import Path\nfrom dnsguard.enforce.bpf.load import load\n{script}"
    return subprocess.run(
        [*around, sys.executable, "-c", text], text=True, capture_output=True, timeout=60, check=False
    )


def test_the_programs_and_maps_are_loaded_with_the_sizes_asked_for() -> None:
    loaded = load(None, SIZES)
    assert set(loaded.programs) == {"from_pod", "to_pod"}
    assert {name: loaded.maps[name].max_entries for name in SIZES} == SIZES
    assert not loaded.kept
    loaded.close()


def test_every_map_that_is_shared_has_the_keys_and_values_of_the_layout() -> None:
    loaded = load(None, {})
    private = (syscall.PERCPU_ARRAY, syscall.RINGBUF)
    found = {name: (each.key_size, each.value_size) for name, each in loaded.maps.items() if each.type not in private}
    found |= {"scratch": (4, loaded.maps["scratch"].value_size)}
    assert found == {name: (key.size, value.size) for name, (key, value) in layout.MAPS.items()}
    loaded.close()


def test_a_size_for_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no map lease: it is one of answers"):
        load(None, {"lease": 5})


def test_a_program_runs_on_a_made_up_packet() -> None:
    loaded = load(None, {})
    frame = bytes(12) + b"\x08\x00" + bytes(50)
    result = syscall.test_run(loaded.programs["from_pod"], frame, repeat=10)
    assert result.packet == frame
    assert result.duration_ns > 0
    loaded.close()


def test_the_next_process_takes_the_maps_over_with_their_leases(folder: Path) -> None:
    leave_leases(folder)
    loaded = load(folder, SIZES)
    assert loaded.kept
    assert dict(loaded.maps["leases"].items()) == LEASES
    loaded.close()


def test_the_programs_of_the_next_process_use_the_maps_that_were_there(folder: Path) -> None:
    leave_leases(folder)
    pinned = Map(syscall.get_pinned(folder / "maps" / "leases"))
    number = syscall.map_info(pinned.fd).number
    loaded = load(folder, SIZES)
    assert syscall.map_info(loaded.maps["leases"].fd).number == number
    pinned.close()
    loaded.close()


@pytest.mark.parametrize("entries", [1000, 200])
def test_leases_are_kept_when_their_map_gets_another_size(folder: Path, entries: int) -> None:
    leave_leases(folder)
    loaded = load(folder, SIZES | {"leases": entries, "ports": 99})
    assert loaded.kept
    assert loaded.maps["leases"].max_entries == entries
    assert dict(loaded.maps["leases"].items()) == LEASES
    assert loaded.maps["ports"].lookup(layout.port_key(7, 6, 443)) == U64.pack(1)
    loaded.close()
    again = load(folder, SIZES | {"leases": entries, "ports": 99})
    assert dict(again.maps["leases"].items()) == LEASES
    again.close()


def test_a_map_that_shrinks_takes_what_it_has_room_for(folder: Path) -> None:
    leave_leases(folder)
    loaded = load(folder, SIZES | {"leases": 40})
    kept = dict(loaded.maps["leases"].items())
    assert len(kept) == 40
    assert kept.items() <= LEASES.items()
    loaded.close()


def test_maps_of_another_layout_are_made_anew(folder: Path) -> None:
    leave_leases(folder)
    marker = Map(syscall.get_pinned(folder / "layout"))
    marker.update(U32.pack(0), U32.pack(layout.LAYOUT + 1))
    marker.close()
    loaded = load(folder, SIZES)
    assert not loaded.kept
    assert not dict(loaded.maps["leases"].items())
    loaded.close()
    again = load(folder, SIZES)
    assert again.kept
    again.close()


def test_maps_with_a_key_of_another_size_are_made_anew(folder: Path) -> None:
    leave_leases(folder)
    (folder / "maps" / "own").unlink()
    fd = syscall.create_map(syscall.HASH, "own", 4, 4)
    syscall.pin(fd, folder / "maps" / "own")
    loaded = load(folder, SIZES)
    assert not loaded.kept
    assert not dict(loaded.maps["leases"].items())
    loaded.close()


def test_what_is_of_no_use_to_the_next_process_is_not_pinned(folder: Path) -> None:
    leave_leases(folder)
    pinned = {path.name for path in (folder / "maps").iterdir()}
    assert not pinned & {"reports", "scratch", "drops"}
    assert {"leases", "flows", "answers", "ports", "settings"} <= pinned


def test_a_map_whose_pin_is_missing_is_made_beside_those_that_are_there(folder: Path) -> None:
    leave_leases(folder)
    (folder / "maps" / "own").unlink()
    loaded = load(folder, SIZES)
    assert loaded.kept
    assert dict(loaded.maps["leases"].items()) == LEASES
    assert (folder / "maps" / "own").exists()
    loaded.close()


def test_a_refused_program_is_told_with_the_verifiers_log() -> None:
    with pytest.raises(MissingFeatureError, match=r"(?s)does not take the eBPF program.*from_pod.*unreachable insn 1"):
        load(None, {}, refused_object())


def test_a_refused_program_leaves_the_earlier_maps_as_they_were(folder: Path) -> None:
    leave_leases(folder)
    with pytest.raises(MissingFeatureError):
        load(folder, SIZES | {"leases": 50}, refused_object())
    loaded = load(folder, SIZES)
    assert dict(loaded.maps["leases"].items()) == LEASES
    loaded.close()


def test_what_is_no_object_is_told() -> None:
    with pytest.raises(KernelError, match="cannot read the eBPF object"):
        load(None, {}, shipped()[:100])


def test_a_missing_privilege_is_named() -> None:
    without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    told = run("load(None, {})", *without).stderr
    assert "MissingFeatureError: the eBPF program needs CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON: " in told


def test_a_missing_libbpf_is_named() -> None:
    load(None, {}).close()
    maps = Path("/proc/self/maps").read_text().splitlines()
    library = next(line.split()[-1] for line in maps if "libbpf.so.1" in line)
    hide = f'mount --bind /dev/null {library} && exec "$@"'
    told = run("load(None, {})", "unshare", "--mount", "sh", "-c", hide, "sh").stderr
    assert "MissingFeatureError: libbpf.so.1 is missing: install the package libbpf1" in told


def test_a_bpffs_is_mounted_at_its_usual_place_when_there_is_none() -> None:
    where = pins.MOUNT_POINT / "dnsguard"
    script = f"load(Path('{where}'), {{}}).close(); print(Path('{where}/maps/leases').exists())"
    hide = 'umount -l /sys/fs/bpf 2>/dev/null; exec "$@"'
    done = run(script, "unshare", "--mount", "sh", "-c", hide, "sh")
    assert done.stdout.strip() == "True", done.stderr


def test_a_folder_that_is_on_no_bpffs_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingFeatureError, match="is not on a bpffs: mount -t bpf bpf /sys/fs/bpf"):
        load(tmp_path / "dnsguard", {})
