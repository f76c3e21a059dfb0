"""The base enforcer: programs as chains, leases as timed set elements, in one table that dnsguard owns."""
