"""The eBPF line at work in a lab of its own, alone or beside nftables."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.contract.ebpf import BpfSubject, attached, loaded
from tests.node.nftables_lab import LAYOUT, Lab


@asynccontextmanager
async def at_work(*, beside_nftables: bool) -> AsyncIterator[BpfSubject]:
    """Without root the run ends with exit code 77."""
    if os.geteuid() != 0:
        pytest.exit("the tests of the eBPF programs need root", returncode=77)
    lab = Lab()
    try:
        with loaded(LAYOUT) as made:
            attaching = attached(lab, made)
            await asyncio.to_thread(attaching.__enter__)
            try:
                subject = BpfSubject(lab, LAYOUT, made, beside_nftables=beside_nftables)
                await subject.start(own=True)
                yield subject
                await subject.enforcer.close()
            finally:
                await asyncio.to_thread(attaching.__exit__, None, None, None)
    finally:
        lab.close()
