"""A lab's node that intercepts its pods' port 53 with the shortest ruleset that does, and clients to ask it.

The sockets under test are opened inside the node, so the listeners can run in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

import uvloop

from dnsguard.demo.lab import Lab, Pod
from dnsguard.listen.transparent import ListenSockets, open_sockets

P = ParamSpec("P")

PORT, MARK, REPLY_MARK, TABLE = 15353, 0x1000, 0x2000, 5353
DEADLINE = 3.0
RULESET = f"""
table inet dnsguard {{
  chain raw {{ type filter hook prerouting priority -300
    iifname "veth*" meta l4proto {{ tcp, udp }} th dport 53 notrack
  }}
  chain prerouting {{ type filter hook prerouting priority -150
    iifname "veth*" fib saddr . iif oif missing drop
    iifname "veth*" meta nfproto ipv4 meta l4proto {{ tcp, udp }} th dport 53 tproxy ip to :{PORT} meta mark set mark or {MARK} accept
    iifname "veth*" meta nfproto ipv6 meta l4proto {{ tcp, udp }} th dport 53 tproxy ip6 to :{PORT} meta mark set mark or {MARK} accept
    meta l4proto {{ tcp, udp }} th dport {PORT} drop
  }}
  chain output {{ type filter hook output priority -300
    meta mark & {REPLY_MARK} == {REPLY_MARK} udp sport {PORT} notrack
    meta mark & {REPLY_MARK} == {REPLY_MARK} udp sport {PORT} udp sport set 53
  }}
}}
"""  # noqa: E501  # a rule is one line


def intercept(lab: Lab) -> ListenSockets:
    """Rules and routes in the lab's node, and the sockets that then receive its pods' DNS packets."""
    for family in ("-4", "-6"):
        lab.run(
            lab.node, "ip", family, "rule", "add", "fwmark", f"{MARK}/{MARK}", "lookup", str(TABLE), "priority", "5"
        )
        lab.run(lab.node, "ip", family, "route", "add", "local", "default", "dev", "lo", "table", str(TABLE))
    lab.run(lab.node, "nft", "-f", "-", input=RULESET)
    return lab.inside(lab.node, lambda: open_sockets(PORT, REPLY_MARK))


def link_index(lab: Lab, pod: Pod) -> int:
    return lab.inside(lab.node, lambda: socket.if_nametoindex(pod.link))


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test on the event loop that the daemon uses."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.002)


def client(lab: Lab, pod: Pod, asked: str, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    """A connected client socket of the pod: over UDP it takes packets only from the address and port it asked.

    Connecting over TCP needs no listener's cooperation: the kernel completes the handshake.
    """
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    opened = lab.socket(pod.namespace, family, kind)
    scope = lab.inside(pod.namespace, lambda: socket.if_nametoindex("eth0")) if asked.startswith("fe80:") else 0
    opened.connect((asked, 53, 0, scope) if family == socket.AF_INET6 else (asked, 53))
    opened.setblocking(False)
    return opened


async def received(asking: socket.socket, size: int = 65_535) -> bytes:
    """The next datagram, or what the stream has; raises TimeoutError when nothing comes."""
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, size), DEADLINE)


async def ask(lab: Lab, pod: Pod, asked: str, packet: bytes) -> bytes:
    """One question over UDP and its answer."""
    with client(lab, pod, asked) as asking:
        asking.send(packet)
        return await received(asking)
