"""dnsguard beside its peers: one node, one pod and one upstream in network namespaces, one server after the other.

`python -m benchmarks` as root. Comes in: a source tree with its virtual environment, and the peers from apt. Goes out:
a table on the terminal, docs/benchmarks.md and plots. It never touches the machine's own network namespace.
"""
