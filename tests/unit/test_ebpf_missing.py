"""What is told when the eBPF line is asked for and cannot be had: where something is amiss, and where nothing is.

Where a capability or a bpffs is missing indeed, `node/test_daemon_ebpf.py` and `host/test_faults_kernel.py` look.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from dnsguard.core.errors import DnsguardError, KernelError, MissingFeatureError, OldKernelError
from dnsguard.daemon import beside
from dnsguard.enforce.bpf.load import NEEDED, _refusal
from dnsguard.enforce.bpf.second import EbpfLayout
from dnsguard.engine.contracts import EventKind
from dnsguard.observe.catalog import CATALOG
from tests.replay.stage import Told


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(beside, "remove_all", lambda bpffs: None)
    return Told()


def left_out(told: Told, error: DnsguardError, monkeypatch: pytest.MonkeyPatch) -> EventKind:
    def refuse(layout: EbpfLayout) -> None:
        raise error

    monkeypatch.setattr(beside, "SecondLine", refuse)
    assert beside.open_line(EbpfLayout(Path("/nowhere")), told, required=False) == (None, str(error))
    ((kind, fields),) = told.events
    assert str(error) in fields["reason"]
    return kind


@pytest.mark.parametrize(
    "error", [MissingFeatureError("the eBPF program needs CAP_BPF"), KernelError("no memory for the eBPF maps")]
)
def test_what_can_be_put_right_on_this_node_is_a_warning(
    error: DnsguardError, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = left_out(told, error, monkeypatch)

    assert kind is EventKind.EBPF_NOT_USED
    assert CATALOG[kind].level == logging.WARNING


def test_what_takes_another_kernel_is_a_remark(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = left_out(told, OldKernelError("the kernel does not take the eBPF program"), monkeypatch)

    assert kind is EventKind.FEATURE_LEFT_OUT
    assert CATALOG[kind].level == logging.INFO


@pytest.mark.parametrize(
    ("number", "held", "old"),
    [
        (errno.EPERM, [], False),
        (errno.EPERM, NEEDED, False),
        (errno.ENOMEM, NEEDED, False),
        (errno.EINVAL, NEEDED, True),
    ],
)
def test_only_a_kernel_that_refuses_whoever_may_ask_is_too_old(
    number: int, held: list[str], old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnsguard.enforce.bpf.load.holds", lambda name: name in held)

    assert isinstance(_refusal(OSError(number, "no"), ""), OldKernelError) is old
