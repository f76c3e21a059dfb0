"""What pods asked for and where they connected, and the allowlist that would have allowed it.

In: questions and flows, as the engine and the kernel tell of them. Out: rows of what was seen, one for each pod, and
an allowlist.yaml made from them. It never decides anything, and never holds up a packet.
"""
