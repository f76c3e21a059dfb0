"""The table before there is a daemon: every pod link is closed until one takes over, from the first moment of a boot.

Pairs of links and addresses that are in no map are dropped, so a table without pods lets nothing through that enters
by a pod link. Where tables can outlive their process (Linux 6.9) so does this one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dnsguard.config.diagnostics import exit_code
from dnsguard.config.settings import usable_settings
from dnsguard.daemon import assembly
from dnsguard.enforce.nftables import close_links


def close(config: Path) -> int:
    """Install the table unless there is one; returns the exit code. Raises DnsguardError when it cannot.

    What is right in a configuration with errors counts; where `pods.interfaces` is not, the links of the default
    patterns are closed: nothing would run there.
    """
    settings, diagnostics = usable_settings(config)
    close_links(assembly.table_layout(settings))
    sys.stderr.writelines(f"{diagnostic}\n" for diagnostic in diagnostics)
    return exit_code(diagnostics)
