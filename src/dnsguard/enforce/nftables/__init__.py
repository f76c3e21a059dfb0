"""The nftables enforcer.

In: programs, pairs and leases from the engine. Out: one table, `inet dnsguard`, that intercepts pod DNS and lets
through what a lease or a rule justifies; acknowledgements; reports of damage and of denied packets. It never touches
another table, nor a packet of a link that is not governed.
"""

from dnsguard.enforce.nftables.enforcer import NftEnforcer, close_links, remove_table
from dnsguard.enforce.nftables.layout import Layout

__all__ = ["Layout", "NftEnforcer", "close_links", "remove_table"]
