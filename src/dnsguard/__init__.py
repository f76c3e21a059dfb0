"""dnsguard: a pod resolves and reaches only what its allowlist names.

One daemon per node. It intercepts the DNS queries of governed pods, answers what their policy allows, and opens
exactly the addresses of those answers, for the pod that asked, on the ports of the rules that allowed the name,
while the answer is valid. Start reading at `engine/exchange.py` (a query) and `engine/change.py` (everything else).
"""

__version__ = "0.1.0"
