"""`dnsguard` as on a kernel where a table cannot be owned (before 6.9): `python -m tests.node.unowned run ...`."""

from __future__ import annotations

import functools
import sys

from dnsguard.cli import main
from dnsguard.enforce.nftables.enforcer import NftEnforcer

if __name__ == "__main__":
    NftEnforcer.create = functools.partial(NftEnforcer.create, own=False)  # type: ignore[method-assign]
    sys.exit(main())
