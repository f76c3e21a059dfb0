"""The eBPF enforcer: a program at both sides of each pod link, and the maps that it decides by.

In: programs, pairs and leases from the engine. Out: packets that a lease or a rule justifies, answers that the kernel
gives by itself, counts and reports of what was dropped. It touches no other program on a link.
"""
