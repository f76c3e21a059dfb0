"""Writes an allowlist the size of a whole cluster: `python benchmarks/cluster_allowlist.py [PODS] [NAMES] > FILE`.

Every pod has names of its own, which is the most that an allowlist of that size can ask of its readers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address

FIRST = int(IPv4Address("10.0.0.1"))


def lines(pods: int, names: int) -> Iterator[str]:
    yield "apiVersion: dnsguard/v1\nkind: Allowlist\npods:\n"
    for pod in range(pods):
        listed = ", ".join(f"host-{name}.service-{pod}.example.com" for name in range(names))
        yield f"  {IPv4Address(FIRST + pod)}: [{listed}]\n"


if __name__ == "__main__":
    sizes = [int(argument) for argument in sys.argv[1:3]]
    sys.stdout.writelines(lines(*(sizes + [50_000, 20][len(sizes) :])))
