"""The child process that reads an allowlist, what becomes of its mishaps, and the store it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.config.diagnostics import ConfigError
from dnsguard.config.files import read_text
from dnsguard.core.model import Address, Network, Origin, PodEntry, Policy
from dnsguard.sources.loader import SHOWN, Bounds, Loaded, load, load_here
from dnsguard.sources.store import Store, StoreWriter

ALLOWLIST = """\
policies:
  backend:
    dns: PassThrough
    egress:
      - to:
          - domainNames: [db.example.com, "*.s3.amazonaws.com"]
            except: [secret.s3.amazonaws.com]
          - ipBlock: {cidr: 10.0.0.0/16, except: [10.0.5.0/24]}
          - ipBlock: {cidr: "fd00:10::/32"}
        ports: [{port: 5432}, {protocol: UDP, port: 8000, endPort: 8010}]
pods:
  10.244.0.5: {name: shop/backend-0, policies: [backend]}
  fd00:10:244::5: {name: shop/backend-0, policies: [backend]}
  10.244.0.6: [github.com, api.github.com]
  10.244.1.0/24: {policies: [backend]}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("upstreams: [10.96.0.10]\n")
    return path


@pytest.fixture
def allowlist(tmp_path: Path) -> Path:
    path = tmp_path / "allowlist.yaml"
    path.write_text(ALLOWLIST)
    return path


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before
    assert children() == []


def descriptors() -> set[str]:
    """Open descriptors; the one that lists them is gone when it is looked at again."""
    return {str(path) for path in list(Path("/proc/self/fd").iterdir()) if path.is_symlink()}


def children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        # A thread may end while it is looked at; its children then hang on another.
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def write(path: Path, text: str) -> None:
    path.write_text(text)


def names_in(path: Path) -> list[str]:
    return [inner.name for inner in path.iterdir()]


def address(text: str) -> Address:
    return Address(ip_address(text).packed)


def told(loaded: Loaded) -> list[str]:
    assert loaded.store is None
    return [str(one) for one in loaded.diagnostics]


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def test_a_store_has_what_the_file_says(config: Path, allowlist: Path, runtime: Path) -> None:
    loaded = await load(config, allowlist, runtime)

    assert loaded.diagnostics == []
    assert loaded.store is not None
    entry = loaded.store.entry(address("10.244.0.5"))
    assert entry is not None
    assert entry.name == "shop/backend-0"
    assert entry.origin == Origin(str(allowlist), 12, 3)
    assert [policy.name for policy in entry.policies] == ["backend"]
    loaded.store.close()


async def test_the_child_and_this_process_read_the_same(config: Path, allowlist: Path, runtime: Path) -> None:
    here = load_here(config, allowlist).store

    there = (await load(config, allowlist, runtime)).store

    assert here is not None
    assert there is not None
    assert list(there.entries()) == list(here.entries())
    assert len(there) == 4
    there.close()


async def test_pods_of_one_policy_share_its_object(config: Path, allowlist: Path, runtime: Path) -> None:
    store = (await load(config, allowlist, runtime)).store
    assert store is not None

    first, second = store.entry(address("10.244.0.5")), store.entry(address("10.244.1.77"))

    assert first is not None
    assert second is not None
    assert first.policies[0] is second.policies[0]
    store.close()


async def test_the_stores_file_has_no_name(config: Path, allowlist: Path, runtime: Path) -> None:
    loaded = await load(config, allowlist, runtime)

    assert names_in(runtime) == []
    assert loaded.store is not None
    loaded.store.close()


async def test_the_allowlist_is_the_one_that_the_configuration_names(
    config: Path, allowlist: Path, runtime: Path
) -> None:
    write(config, f"upstreams: [10.96.0.10]\nallowlist: {allowlist}\nttl: {{floor: 2h}}\n")

    loaded = await load(config, None, runtime)

    assert loaded.store is not None
    assert [str(one).split(": ")[1] for one in loaded.diagnostics] == ["warning"]
    loaded.store.close()


async def test_own_addresses_and_settings_reach_the_checks(config: Path, allowlist: Path, runtime: Path) -> None:
    write(config, "upstreams: [10.96.0.10]\nanswers: {protected: [10.0.0.0/8]}\n")

    loaded = await load(config, allowlist, runtime, own=[address("10.244.0.6")])

    assert [(one.origin.line, one.severity) for one in loaded.diagnostics] == [(8, "warning"), (14, "warning")]
    assert loaded.store is not None
    loaded.store.close()


@pytest.mark.parametrize(
    ("config_text", "warned"), [("", True), ("mode: Audit\n", False), ("defaultAction: Allow\n", False)]
)
@pytest.mark.parametrize("pods", ["pods: {}\n", "policies: {}\n"])
def test_a_list_of_no_pods_is_warned_of_where_it_closes_them_all(
    config: Path, allowlist: Path, config_text: str, warned: bool, pods: str
) -> None:
    write(config, f"upstreams: [10.96.0.10]\n{config_text}")
    write(allowlist, pods)

    loaded = load_here(config, allowlist)

    assert [str(one).partition(": warning: ")[2][:17] for one in loaded.diagnostics] == ["no pod is listed:"] * warned


async def test_a_file_with_an_error_gives_no_store(config: Path, allowlist: Path, runtime: Path) -> None:
    write(allowlist, "pods: {10.0.0.1: [a b]}\n")

    loaded = await load(config, allowlist, runtime)

    (line,) = told(loaded)
    assert line.startswith(f"{allowlist}:1:19: error: ")


async def test_errors_of_both_files_come_together(config: Path, allowlist: Path, runtime: Path) -> None:
    write(config, "upstreams: []\n")
    write(allowlist, "pods: []\n")

    loaded = await load(config, allowlist, runtime)

    assert [line.split(": ")[0] for line in told(loaded)] == [f"{config}:1:12", f"{allowlist}:1:7"]


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file"),
        (Path.mkdir, "this is a directory"),
        (_fifo, "this is a FIFO"),
        (_device, "this is a device"),
        (_loop, "cannot be read: Too many levels of symbolic links"),
        (_huge, "larger than 256 MiB"),
        (Path.touch, "the file is empty"),
    ],
)
async def test_what_cannot_be_read_is_an_error_like_any_other(
    config: Path, runtime: Path, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "list.yaml"
    make(path)

    loaded = await load(config, path, runtime)

    (line,) = told(loaded)
    assert line.startswith(f"{path}:1:1: error: {words}")


@pytest.mark.parametrize("mode", ["ab", "r+b"], ids=["growing", "overwritten in place"])
def test_a_file_that_is_being_written_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "list.yaml"
    path.touch()
    os.truncate(path, 32 << 20)
    done = threading.Event()

    def write_on() -> None:
        with path.open(mode, buffering=0) as file:
            while not done.is_set():
                if mode == "r+b":
                    file.seek(0)
                file.write(b"#")

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        deadline = time.monotonic() + 20
        with pytest.raises(ConfigError, match="it changed while it was read"):
            while time.monotonic() < deadline:
                read_text(path)
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize(
    ("sent", "words"),
    [(signal.SIGKILL, "was killed (out of memory?)"), (signal.SIGSEGV, "was ended by SIGSEGV")],
)
async def test_a_child_that_is_ended_is_an_error(
    config: Path, allowlist: Path, runtime: Path, sent: signal.Signals, words: str
) -> None:
    loading = asyncio.create_task(load(config, allowlist, runtime))
    await until(children)

    os.kill(children()[0], sent)

    (line,) = told(await loading)
    assert line.startswith(f"{allowlist}:1:1: error: the process that reads it {words}")


async def test_a_child_without_memory_is_an_error(config: Path, allowlist: Path, runtime: Path) -> None:
    write(allowlist, "pods:\n" + "".join(f"  10.0.{n >> 8}.{n & 255}: [h{n}.example.com]\n" for n in range(40_000)))

    loaded = await load(config, allowlist, runtime, bounds=Bounds(memory=1 << 20))

    (line,) = told(loaded)
    assert "there is not enough memory to read it" in line


async def test_a_child_that_hangs_is_given_up_and_ended(config: Path, allowlist: Path, runtime: Path) -> None:
    loading = asyncio.create_task(load(config, allowlist, runtime, bounds=Bounds(deadline=0.5)))
    await until(children)

    os.kill(children()[0], signal.SIGSTOP)

    (line,) = told(await loading)
    assert line.endswith("reading it took longer than 0.5 s and was given up")
    assert children() == []


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/bin/false", "failed with status 1"),
        ("/bin/true", "ended without a result"),
        ("/nowhere", "could not be started"),
    ],
)
async def test_a_child_that_cannot_work_is_an_error(
    config: Path, allowlist: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)

    loaded = await load(config, allowlist, runtime)

    (line,) = told(loaded)
    assert words in line


async def test_a_runtime_directory_that_is_not_there_is_an_error(config: Path, allowlist: Path, tmp_path: Path) -> None:
    loaded = await load(config, allowlist, tmp_path / "absent")

    (line,) = told(loaded)
    assert line.startswith(f"{tmp_path / 'absent'}:1:1: error: ")


async def test_cancelling_a_load_ends_its_child(config: Path, allowlist: Path, runtime: Path) -> None:
    loading = asyncio.create_task(load(config, allowlist, runtime))
    await until(children)
    os.kill(children()[0], signal.SIGSTOP)

    loading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await loading
    assert children() == []


async def test_very_many_findings_are_cut_short_with_their_number(config: Path, allowlist: Path, runtime: Path) -> None:
    warned = "".join(f"  10.0.{n >> 8}.{n & 255}: []\n" for n in range(SHOWN + 5))
    write(allowlist, f"pods:\n{warned}  10.1.0.1: [a b]\n")

    loaded = await load(config, allowlist, runtime)

    lines = told(loaded)
    assert len(lines) == SHOWN + 1
    assert sum(": error: " in line for line in lines) == 1
    assert "6 more errors and warnings" in lines[-1]


_NETWORKS = st.builds(
    lambda number, length: ip_network((number, length), strict=False), st.integers(0, 255), st.integers(24, 32)
) | st.builds(
    lambda number, length: ip_network((IPv6Address(number), length), strict=False),
    st.integers(0, 255),
    st.integers(120, 128),
)


def naive(networks: list[Network], packed: bytes) -> Network | None:
    asked = ip_address(packed)
    holding = [network for network in networks if asked in network]
    return max(holding, key=lambda network: network.prefixlen, default=None)


@given(st.lists(_NETWORKS, unique=True, max_size=20), st.integers(0, 255))
def test_the_longest_prefix_wins(networks: list[Network], number: int) -> None:
    buffer = io.BytesIO()
    writer = StoreWriter(buffer)
    for network in networks:
        writer.add(PodEntry(network, str(network), (Policy(str(network), ()),)))
    writer.finish("a.yaml")
    store = Store(buffer.getvalue())

    for packed in (IPv4Address(number).packed, IPv6Address(number).packed):
        entry = store.entry(Address(packed))

        assert (entry.network if entry else None) == naive(networks, packed)
        assert entry is None or entry.policies[0].name == entry.name
    store.close()


def test_entries_are_found_by_the_name_of_their_pod(config: Path, allowlist: Path) -> None:
    store = load_here(config, allowlist).store
    assert store is not None

    found = store.named("shop/backend-0")

    assert {str(entry.network) for entry in found} == {"10.244.0.5/32", "fd00:10:244::5/128"}
    store.close()
