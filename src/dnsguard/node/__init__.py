"""What the node knows: links, routes, and conntrack's flows.

`watch` follows the kernel from a thread and hands what it hears to followers: `links` (which pods there are),
`routing` (the way of intercepted packets). Results come back in the event loop's thread; nothing here decides policy.
"""
