"""`dnsguard` as on an older kernel, where no table can be owned and programs are tc filters: `older.py run ...`."""

from __future__ import annotations

import functools
import sys

from dnsguard.cli import main
from dnsguard.enforce.bpf import attach
from dnsguard.enforce.nftables import watch
from dnsguard.enforce.nftables.enforcer import NftEnforcer

if __name__ == "__main__":
    NftEnforcer.create = functools.partial(NftEnforcer.create, own=False)  # type: ignore[method-assign]
    attach.has_tcx = lambda: False  # type: ignore[attr-defined]
    watch._BUFFER = 1 << 20  # a small burst overflows it
    sys.exit(main())
