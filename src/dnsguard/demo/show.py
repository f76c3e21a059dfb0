"""The demonstration: a table of steps, played by real clients against the real daemon, each with what to expect.

Ends at the first act that is not as expected. Leaves nothing behind, however it ends.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dnsguard.demo.acts import (
    CACHE,
    KERNEL,
    OUTSIDE,
    Step,
    cannot_borrow,
    cannot_resolve,
    gets_page,
    goes_on,
    is_answered,
    is_dropped,
    is_told_why,
    leases_end,
    never_left_the_node,
    nobody_answers,
    opens_conversation,
    reloads,
    shows,
    stands_still,
    step,
    still_talks,
    talks_no_more,
)
from dnsguard.demo.interrupts import Interrupted, Interrupts
from dnsguard.demo.lab import NODE_ADDRESSES
from dnsguard.demo.stage import OTHERS, PODS, RESOLVER, SITES, Stage, stage
from dnsguard.demo.telling import Teller
from dnsguard.demo.world import DNS_SERVER

ALLOWLIST: Final = f"""\
apiVersion: dnsguard/v1
kind: Allowlist
policies:
  backend:
    egress:
      - to: [{{domainNames: [api.example.com]}}]
        ports: [{{protocol: TCP, port: 80}}, {{protocol: TCP, port: 7}}]
  cron:
    egress:
      - to: [{{domainNames: ["*.example.net"]}}]
        ports: [{{protocol: TCP, port: 80}}]
pods:
  {PODS["backend"]}: {{name: shop/backend, policies: [backend]}}
  {PODS["cron"]}: {{name: shop/cron, policies: [cron]}}
"""
EDIT: Final = ("api.example.com", "files.example.net")

API, EVIL = SITES["api.example.com"], SITES["evil.example.org"]

CAST: Final = (
    ("pod shop/backend", PODS["backend"], "may reach api.example.com on TCP ports 80 and 7"),
    ("pod shop/cron", PODS["cron"], "may reach every name under example.net on TCP port 80"),
    ("node", NODE_ADDRESSES[0], "runs dnsguard; everything that the pods send passes here"),
    ("resolver", RESOLVER, "in the pods' resolv.conf; nothing has this address, dnsguard answers"),
    ("DNS server", DNS_SERVER, "outside; knows every name, dnsguard forwards to it"),
    *((name, address, "outside; pages on ports 80 and 8080, an echo on 7") for name, address in SITES.items()),
    (OTHERS, SITES["files.example.net"], "outside; other names of files.example.net"),
)
BOTH_LINES: Final = "Enforced twice, by nftables and by eBPF: a packet passes only if both let it."
ONE_LINE: Final = (
    "No eBPF here, so nftables enforces alone, and the step in which the kernel answers is left out. The reason:"
)
HOT, NEW = "static.example.net", "new.example.net"
MANY: Final = 200

ENDED: Final = r"lease of api\.example\.com ended \d+ s ago"
TAKEN_BACK: Final = r"lease of api\.example\.com was taken back, the policy no longer allows it"


def story(allowlist: str, *, ebpf: bool = True) -> tuple[Step, ...]:
    """The steps, in order. One stands on those before it. Without eBPF the kernel answers nothing."""
    return (
        step(
            "The outside world answers: what a pod cannot reach below, it cannot reach because of dnsguard",
            gets_page("node", f"http://{EVIL}/"),
            gets_page("node", f"http://{API}:8080/"),
        ),
        step(
            "An allowed name resolves and connects",
            gets_page("backend", "http://api.example.com/"),
            gets_page("cron", "http://files.example.net/"),
        ),
        step(
            "A denied name gets NXDOMAIN, with the reason",
            cannot_resolve("backend", "http://evil.example.org/"),
            is_told_why("backend", "evil.example.org"),
            never_left_the_node("evil.example.org"),
        ),
        step(
            "A raw address that was never resolved is dropped",
            is_dropped("backend", f"http://{EVIL}/", because="never resolved"),
        ),
        step(
            "Another pod, with another policy, cannot use the first one's addresses",
            gets_page("backend", "http://api.example.com/"),
            is_dropped("cron", f"http://{API}/", because="never resolved"),
            gets_page("backend", f"http://{API}/"),
        ),
        step(
            "Nor does it help to send with the first one's address",
            gets_page("backend", "http://api.example.com/"),
            cannot_borrow("cron", "backend", f"http://{API}/"),
            gets_page("backend", "http://api.example.com/"),
        ),
        step(
            "The wrong port is dropped",
            is_dropped("backend", "http://api.example.com:8080/", because="its leases open other ports only"),
        ),
        *((answers_in_the_kernel(),) if ebpf else ()),
        step(
            "After the lease has ended a new connection is dropped, and the old one still flows",
            opens_conversation("backend", "api.example.com"),
            leases_end("backend"),
            is_dropped("backend", f"http://{API}/", because=ENDED),
            still_talks("backend"),
        ),
        step(
            "An edited allowlist takes effect at once, and cuts what it no longer allows",
            gets_page("backend", "http://api.example.com/"),
            still_talks("backend"),
            reloads(allowlist.replace(*EDIT), f"{EDIT[0]} becomes {EDIT[1]}"),
            talks_no_more("backend"),
            is_dropped("backend", f"http://{API}/", because=TAKEN_BACK),
            cannot_resolve("backend", "http://api.example.com/"),
            gets_page("backend", "http://files.example.net/"),
        ),
        step(
            "dnsguard tells who is governed, and what is open",
            shows(
                "pods",
                "both pods, with their policies" + (", and how many questions the kernel answered" if ebpf else ""),
                r"shop/backend .* backend (?s:.*)shop/cron .* cron " + (rf".* {MANY // 100}\d\d " if ebpf else ""),
            ),
            gets_page("backend", "http://files.example.net/"),
            shows(
                "leases",
                "what is open now, for whom and how long",
                r"shop/backend +198\.51\.100\.20 +tcp/7 tcp/80 +files\.exa",
            ),
        ),
    )


def answers_in_the_kernel() -> Step:
    return step(
        "A name that is asked again is answered in the kernel, even while dnsguard stands still",
        is_answered("cron", HOT, by=OUTSIDE),
        is_answered("cron", HOT, by=CACHE, again=", again"),
        is_answered("cron", HOT, by=KERNEL, again=f", {MANY} times more", times=MANY),
        stands_still(),
        is_answered("cron", HOT, by=KERNEL, again=", again"),
        nobody_answers("cron", NEW),
        goes_on("cron", NEW),
    )


def main(keep: bool, *, allowlist: str = ALLOWLIST) -> int:
    """Show every step and return the exit code: 0, 1 when one is not as expected, 128 + the signal that ended it.

    With `keep` everything stays after the last step until Ctrl-C, which is then a good end. Raises MissingFeatureError,
    and DnsguardError when dnsguard does not start.
    """
    teller = Teller()
    with Interrupts() as interrupts:
        try:
            with stage(allowlist, interrupts) as made:
                code = perform(made, allowlist, teller)
                if keep and code == 0:
                    stay(made, allowlist, teller)
        except Interrupted as end:
            teller.say(f"\n{end}: everything that the demo made is removed.")
            return 128 + end.number
    teller.say("Everything that the demo made is removed.")
    return code


def perform(made: Stage, allowlist: str, teller: Teller) -> int:
    """Play every step. Returns 0, or 1 after the first that is not as expected."""
    begin = time.monotonic()
    introduce(made, allowlist, teller)
    results: list[tuple[Step, bool]] = []
    steps = story(allowlist, ebpf=made.without_ebpf is None)
    for number, one in enumerate(steps, 1):
        teller.heading(f"{number}. {one.title}")
        results.append((one, play(one, made, teller)))
        if not results[-1][1]:
            break
    teller.results(results)
    if not results[-1][1]:
        teller.say(f"\nStep {len(results)} is not as expected: {results[-1][0].title}.", "bold red")
        teller.say(f"The end of dnsguard's log:\n{tail(made.log)}")
        return 1
    teller.say(f"\nAll {len(steps)} steps are as expected, in {time.monotonic() - begin:.0f} s.", "bold green")
    return 0


def introduce(made: Stage, allowlist: str, teller: Teller) -> None:
    teller.heading("Who is who")
    teller.columns(CAST)
    teller.say()
    if made.without_ebpf is None:
        teller.say(f"  {BOTH_LINES}")
    else:
        teller.say(f"  {ONE_LINE}\n  {made.without_ebpf}", "yellow")
    teller.heading(f"The allowlist ({made.folder}/allowlist.yaml)")
    for line in allowlist.splitlines():
        teller.say(f"  {line}")


def play(one: Step, made: Stage, teller: Teller) -> bool:
    for act in one.acts:
        teller.before(act)
        happened = act.play(made)
        made.interrupts.check()
        as_expected = act.is_as_expected(happened)
        teller.after(happened, as_expected)
        if not as_expected:
            return False
    return True


def stay(made: Stage, allowlist: str, teller: Teller) -> None:
    """Say what can be tried, and wait for a signal."""
    made.allow(allowlist)
    made.dnsguard("reload")
    config = f"--config {made.config}"
    teller.heading("All of it is running, with the allowlist from above. In another terminal:")
    for what, commands in things_to_try(made, f"{program()} {{}} {config}"):
        teller.say(f"  {what}", "cyan")
        for command in commands:
            teller.say(f"    {command}")
    teller.say("\nCtrl-C here ends it, and what was started in the pods.", "bold")
    with contextlib.suppress(Interrupted):
        made.interrupts.forever()


def things_to_try(made: Stage, dnsguard: str) -> Sequence[tuple[str, Sequence[str]]]:
    return (
        ("enter a pod: a shell in its network, with its resolver", [f"sh {made.door(pod)}" for pod in PODS]),
        (
            "try there",
            (
                "curl http://api.example.com/             # backend may, cron may not",
                "curl http://files.example.net/           # the other way round",
                f"curl -m 2 http://{EVIL}/           # dropped",
                "curl telnet://api.example.com:7          # a connection that stays: type something",
            ),
        ),
        ("watch dnsguard", (f"tail -f {made.log}",)),
        (
            "ask it",
            (
                dnsguard.format("leases"),
                dnsguard.format("monitor") + " --type drop",
                dnsguard.format("explain") + " shop/backend evil.example.org",
                f"nsenter --net=/run/netns/{made.node} nft list table inet dnsguard",
            ),
        ),
        ("change the allowlist", (f"${{EDITOR:-nano}} {made.folder}/allowlist.yaml", dnsguard.format("reload"))),
    )


def program() -> str:
    script = Path(sys.executable).with_name("dnsguard")
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m dnsguard"


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text().splitlines()[-lines:])
