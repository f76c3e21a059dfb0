"""What C and Python share is said twice, and has to be the same; and the shipped object is that of the sources."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from struct import calcsize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.model import Address
from dnsguard.enforce.bpf import layout
from dnsguard.enforce.bpf.layout import FlowKey, Idle, LeaseKey, Record, What
from dnsguard.enforce.bpf.load import shipped
from tests import elf

BPF = Path(__file__).parents[2] / "bpf"
HEADER = (BPF / "layout.h").read_text()
OBJECT = shipped()
STRUCTS = elf.structs(OBJECT)
RECORDS = {name.lower(): each for name, each in vars(layout).items() if isinstance(each, Record) and name[0] != "U"}
ADDRESSES = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)).map(Address)


def offsets(record: Record) -> dict[str, int]:
    formats = list(record.fields.values())
    return {name: calcsize("=" + "".join(formats[:index])) for index, name in enumerate(record.fields)}


def from_header(name: str) -> elf.Struct:
    """A struct without holes, as the header has it."""
    body = re.search(rf"struct {name} {{(.*?)}};", HEADER, re.DOTALL)
    assert body
    found, end = {}, 0
    for kind, field, count in re.findall(r"(?:__(u\d+)|struct address) (\w+)(?:\[(\d+)\])?;", body.group(1)):
        size = int(kind[1:]) // 8 if kind else layout.ADDRESS.size
        assert end % min(size, 4 if not kind else 8) == 0
        found[field] = end
        end += size * int(count or 1)
    return elf.Struct(end, found)


def enumerators(name: str) -> list[str]:
    """Of an enum without gaps or numbers; the last counts the others."""
    found = re.search(rf"enum {name} {{(.*?)}};", HEADER, re.DOTALL)
    assert found
    body = re.sub(r"/\*.*?\*/", "", found.group(1), flags=re.DOTALL)
    assert "=" not in body
    return [each.strip() for each in body.split(",") if each.strip()][:-1]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_the_struct_of_the_program(name: str) -> None:
    # a struct that is no map's key or value, nor an argument, leaves no type information
    found = STRUCTS.get(name) or from_header(name)
    assert offsets(RECORDS[name]) == found.offsets
    assert RECORDS[name].size == found.size


def test_the_header_is_read_as_the_compiler_does() -> None:
    for name in ("pair_key", "lease_key", "flow_key", "flow", "drop_key"):
        assert from_header(name) == STRUCTS[name]


def test_every_struct_of_the_header_has_a_record() -> None:
    assert set(re.findall(r"^struct (\w+) {", HEADER, re.MULTILINE)) == set(RECORDS)


@pytest.mark.parametrize(("name", "number"), re.findall(r"^#define (\w+) (0x[0-9a-f]+|\d+)\b", HEADER, re.MULTILINE))
def test_a_number_of_the_header_is_that_of_python(name: str, number: str) -> None:
    assert int(number, 0) == getattr(layout, name)


def test_the_numbers_of_what_is_counted_are_the_headers() -> None:
    assert [each.name for each in What] == enumerators("what")
    assert [each.value for each in What] == list(range(len(What)))


def test_the_indexes_of_idle_times_are_the_headers() -> None:
    assert [f"IDLE_{each.name}" for each in Idle] == enumerators("idle")
    assert [each.value for each in Idle] == list(range(len(Idle)))


def test_the_shipped_object_is_as_new_as_its_sources() -> None:
    build = runpy.run_path(str(BPF / "build.py"))
    section = elf.sections(OBJECT)[build["SECTION"]]
    carried = OBJECT[section.offset : section.offset + section.size].decode()
    assert carried == build["sources_digest"](), "run `make bpf` and commit the object"


def test_a_program_uses_no_type_of_one_kernel() -> None:
    assert not {"sk_buff", "task_struct"} & set(STRUCTS)


@given(ADDRESSES)
def test_an_address_reads_back(address: Address) -> None:
    packed = layout.address(address)
    assert len(packed) == STRUCTS["address"].size
    assert layout.address_of(packed) == address


@given(st.builds(LeaseKey, st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1), ADDRESSES))
def test_a_leases_key_reads_back(key: LeaseKey) -> None:
    assert LeaseKey.unpack(key.pack()) == key


@given(
    st.builds(
        FlowKey,
        *(st.integers(0, (1 << 32) - 1), st.integers(0, 255), st.integers(0, 65535), st.integers(0, 65535), ADDRESSES),
    )
)
def test_a_flows_key_reads_back(key: FlowKey) -> None:
    assert FlowKey.unpack(key.pack()) == key


def test_a_prefix_of_a_port_counts_the_bits_before_it() -> None:
    assert layout.port_key(7, 6, 0x1F40, 13)[:4] == (96 + 13).to_bytes(4, "little")
    assert layout.port_key(7, 6, 0x1F40, 13)[16:18] == b"\x1f\x40"


def test_a_network_counts_the_bits_before_it() -> None:
    key = layout.block_key(7, Address(bytes([10, 1, 0, 0])), 16)
    assert key[:4] == (96 + 16).to_bytes(4, "little")
    assert key[16:] == bytes([10, 1, 0, 0]) + bytes(12)
