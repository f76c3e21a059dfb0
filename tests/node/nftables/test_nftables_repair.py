"""A repair that fails is told, and tried again until one succeeds."""

from __future__ import annotations

import pytest

from dnsguard.core.errors import KernelError
from dnsguard.enforce.nftables import NftEnforcer, enforcer
from dnsguard.engine.contracts import Desired
from tests.node.nftables.test_nftables_interception import until
from tests.node.nftables_lab import LAYOUT, Lab, inside

pytestmark = pytest.mark.node


async def test_a_repair_that_fails_is_told_and_tried_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcer, "RETRY", 0.05)
    failures: list[str] = []
    with inside(lab.node):
        made = await NftEnforcer.create(
            LAYOUT, lambda *_: None, lambda what: None, lambda denial: None, on_failure=failures.append, own=False
        )
    try:
        await made.apply(Desired())
        repair, refusals = made._table.repair, iter(["no memory", "no buffer space"])

        def refused_at_first() -> None:
            if reason := next(refusals, None):
                raise KernelError(reason)
            repair()

        monkeypatch.setattr(made._table, "repair", refused_at_first)
        lab.nft("flush ruleset")
        await until(lambda: "dnsguard" in lab.nft("list tables"))
        await made.repair()

        assert failures[:2] == ["no memory", "no buffer space"]
        assert await made.verify() == []
    finally:
        await made.close()
