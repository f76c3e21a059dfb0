"""Every event's level, message, advice and meaning, as one table.

A template's fields are the event's own; `{who}` is the pod's name, else its address. A MESSAGE_ID never changes once
released: journal catalogs and alert rules refer to it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from dnsguard.engine.contracts import EventKind

DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


@dataclass(frozen=True, slots=True)
class Description:
    """What an operator is told about one kind of event: the sentence that says what happened, what to do, and what it
    means. `limited`: pods can provoke it, so it has a rate limit."""

    level: int
    template: str
    message_id: UUID
    advice: str
    limited: bool = False
    meaning: str = ""


CATALOG: Final[dict[EventKind, Description]] = {
    EventKind.STARTED: Description(
        INFO,
        "dnsguard {version} starts",
        UUID("1166f648a0894437bd0271984a02fe38"),
        "Nothing to do.",
        meaning="The daemon's process runs. Until it is ready, what an earlier one left in the kernel stays in force, "
        "and nothing more opens.",
    ),
    EventKind.READY: Description(
        INFO,
        "ready: DNS is intercepted and enforcement is in place",
        UUID("2794f5bfe78f426fa9e93e1ac19d74a0"),
        "Nothing to do.",
        meaning="From here on every governed pod resolves and reaches what its policy names, and no more.",
    ),
    EventKind.STOPPING: Description(
        INFO,
        "stopping: queries in flight are answered first",
        UUID("290ef0046a804e8c9e0b72c430ca9ad5"),
        "Nothing to do.",
        meaning="The service was told to stop, by systemd or by a person. No new question is taken.",
    ),
    EventKind.STOPPED: Description(
        INFO,
        "stopped; enforcement stays in place",
        UUID("be0b00591a2549d0821460b0037a5f53"),
        "Nothing to do for a restart. Else start it again, or run `dnsguard cleanup` to take every rule out of the "
        "kernel.",
        meaning="Governed pods keep what is open to them until its lease ends; new names are not resolved.",
    ),
    EventKind.START_FAILED: Description(
        ERROR,
        "dnsguard ends: {reason}",
        UUID("5dcf6ce2193e4f8fa89d11ff4d74786f"),
        "Remove the cause named; systemd tries again every few seconds, and `systemctl status dnsguard` has the state. "
        "For `internal error`, report the stack.",
        meaning="The process cannot go on, and ends. Pods stay closed, but for what the kernel holds until each lease "
        "ends. Told once for a cause that stays, and again every 100 starts.",
    ),
    EventKind.ENDED_BADLY: Description(
        ERROR,
        "the process before this one did not end by itself: {reason}",
        UUID("2638642f557e470e96be177f84f12aa4"),
        "Killed for want of memory: raise MemoryMax= of dnsguard.slice, or see what else fills the node "
        "(`journalctl -k`). Hung: report the stacks of its threads, which the journal has. Else look who killed it.",
        meaning="systemd has started this one in its place. What the kernel enforced it went on enforcing; queries "
        "that the process had in hand are answered at the client's retry.",
    ),
    EventKind.CLOCK_STEPPED: Description(
        WARNING,
        "the wall clock was set {seconds} s {way}, or the node has slept",
        UUID("bcc4051646c844c09a56b4b211183dd5"),
        "Nothing to do for enforcement. Look at the node's time synchronisation; times in logs jump.",
        meaning="Leases and TTLs run by a clock that nobody sets; `dnsguard learn` says when by this one.",
    ),
    EventKind.FEATURE_LEFT_OUT: Description(
        INFO,
        "{feature} is left out: {reason}",
        UUID("a6b0e218ec3e43fe819e081b6843bb02"),
        "Boot a newer kernel (docs/kernels.md), or write `enforcement.ebpf: Off` to have this said no more.",
        meaning="The configuration leaves it to the daemon whether to use this, and this kernel cannot. Enforcement is "
        "whole without it.",
    ),
    EventKind.EBPF_NOT_USED: Description(
        WARNING,
        "eBPF is asked for and cannot be used, nftables enforces alone: {reason}",
        UUID("655d355f-eb16-4eb1-99e9-5847ba20760c"),
        "Do what the reason says and restart dnsguard; `dnsguard check --system` tries it again. Where this node is to "
        "do without, write `enforcement.ebpf: Off`.",
        meaning="The kernel could have the second line, but a privilege, a library, a bpffs or memory is missing. What "
        "an earlier process had put on the pods' links was taken off. Every query goes up to the daemon.",
    ),
    EventKind.POLICY_LOADED: Description(
        INFO,
        "policy generation {generation} is in force",
        UUID("9f2c3dc6747b450591d9f75bc7eb2999"),
        "Nothing to do.",
        meaning="The allowlist was read without error, and all that it no longer justifies is closed.",
    ),
    EventKind.POLICY_REJECTED: Description(
        ERROR,
        "{reason}",
        UUID("fbe581fd20204c8a849a43cab186e10f"),
        "The policy before stays in force. Correct the file at the place named and run `dnsguard reload`.",
        meaning="The new allowlist is in no part in force: either all of it is, or nothing.",
    ),
    EventKind.POLICY_NOT_TAKEN: Description(
        ERROR,
        "{reason}",
        UUID("a747e7be-35ec-4592-8fe4-ca417f5f27b6"),
        "The policy before stays in force. Do what the reason says (permission, memory, room, the kernel's log), then "
        "run `dnsguard reload`.",
        meaning="The file could not be read to its end, or what it says could not be put in force. Nothing is known "
        "to be wrong with what is written in it.",
    ),
    EventKind.POLICY_WARNING: Description(
        WARNING,
        "{reason}",
        UUID("91aeaae4436f4caaa57ef3eed168302f"),
        "Look at the place named: the file is valid, but probably does not mean what was intended.",
        meaning="The file is in force as it is written. `dnsguard check` shows all that can be said of it.",
    ),
    EventKind.RESTART_NEEDED: Description(
        WARNING,
        "{reason}",
        UUID("150d3420-8b52-4bbb-91fa-e04eab9ad796"),
        "Run `systemctl restart dnsguard` when it suits; pods keep what they have meanwhile.",
        meaning="A reload found this key of config.yaml changed, and it is one that only a start reads. Until then the "
        "value before counts; the rest of the reload is in force.",
    ),
    EventKind.MODE_CHANGED: Description(
        WARNING,
        "mode {mode} is in force",
        UUID("fce4ee56-5909-4b08-9930-f3b4be947b8e"),
        "In Audit everything is let through and told of; write mode: Enforce and run `dnsguard reload` to close it.",
        meaning="A reload found another mode in config.yaml and has put it in force, or failed afterwards and has put "
        "back the one before. When enforcing began, open flows that nothing justifies were cut.",
    ),
    EventKind.POD_CAME: Description(
        INFO,
        "{who} came on {link}",
        UUID("ee434c7f412a48c8a4d6b5540078c9a2"),
        "Nothing to do.",
        meaning="A link with the pod's addresses was found on this node. From now on the pod is governed.",
    ),
    EventKind.POD_CHANGED: Description(
        INFO,
        "{who} on {link} changed: {reason}",
        UUID("653bb0e5e6aa43dc9abcfd6c9a0cb559"),
        "Nothing to do.",
        meaning="Its addresses, its entry or its policy are others than before; what is open to it was adapted.",
    ),
    EventKind.POD_WENT: Description(
        INFO,
        "{who} went from {link}",
        UUID("bdb01abef66041c7aa74a60c12c88ebf"),
        "Nothing to do.",
        meaning="Its link or its addresses have gone. Everything that was open to it is closed.",
    ),
    EventKind.POD_CONFLICT: Description(
        ERROR,
        "everything is denied to {who}: {reason}",
        UUID("f077373a53ff4fdbb03168aa0ba5467b"),
        "Where two lines are named, give all addresses of the pod the same name and policies; where there are too many "
        "rules, give more of them the same ports; where tables.pods is full, raise it and restart dnsguard.",
        meaning="The pod's entries contradict each other or make more rules than a program can hold, or there are "
        "more pods than tables.pods. So long nothing is let through.",
    ),
    EventKind.NODE_PROBLEM: Description(
        WARNING,
        "{reason}",
        UUID("5c0f4f3e2b1d4f0c9e57a1d2b8c36e04"),
        "Put right what is named: set the link up, remove the route or the rule, or move the rule behind dnsguard's. "
        "After an error of following links there is nothing to do, unless it comes again.",
        meaning="A link, route or rule on this node is not as dnsguard needs it, or could not be followed for a "
        "moment. What could not be ensured is closed, not open.",
    ),
    EventKind.SYSCTL_UNUSABLE: Description(
        WARNING,
        "{reason}",
        UUID("04d8a044-b4e4-46db-a31c-5d6d56e70f34"),
        "Set it as the line says, and in /etc/sysctl.d for the next boot; `dnsguard check --system` looks again.",
        meaning="A setting of the kernel, as it was at the start, keeps pods' queries or packets from getting through. "
        "Nothing is open because of it.",
    ),
    EventKind.BPFFS_UNMOUNTED: Description(
        WARNING,
        "the bpffs was unmounted from the node: eBPF enforces as before until dnsguard stops, and nftables all along",
        UUID("cb3d0b3b-922d-4a9e-8a28-719a422611d2"),
        "Find out what unmounted it, have it mounted again (`mount -t bpf bpf /sys/fs/bpf`), and restart dnsguard when "
        "it suits.",
        meaning="Maps and programs of the running daemon are held by its process alone, no longer by files: what ends "
        "the process takes them off the pods' links, until the next one is there.",
    ),
    EventKind.SOCKET_NOT_USED: Description(
        WARNING,
        "a socket of dnsguard.socket is not used: {reason}",
        UUID("44c85c0293f242389a092fbc995ef907"),
        "dnsguard listens on a socket of its own. Set the unit's addresses as dns.listenPort is, with `systemctl edit "
        "dnsguard.socket`, or disable the unit.",
        meaning="systemd was to hold it, so that no query is lost while dnsguard is not there. It is of another port "
        "or kind, so queries of the time of a restart are lost until the client asks again.",
    ),
    EventKind.QUERY_ALLOWED: Description(
        INFO,
        "{who} resolves {name} ({type})",
        UUID("5142958dbce14b00944e008113bca5c2"),
        "Nothing to do. Set log.queries to Denied to write fewer lines.",
        limited=True,
        meaning="A rule of the pod allows the name. Its addresses open to the pod on that rule's ports when the "
        "answer is given.",
    ),
    EventKind.QUERY_DENIED: Description(
        INFO,
        "{who} may not resolve {name} ({type}): {reason}",
        UUID("7a46d40837fd4be587dd2d463afaf428"),
        "If the pod needs this name, allow it in one of the pod's policies, or mend what denies it: `dnsguard explain` "
        "shows what decided, and the line to add.",
        limited=True,
        meaning="No rule of the pod allows the name, or one denies it. The pod was told so at once, and no upstream "
        "was asked.",
    ),
    EventKind.QUERY_AUDITED: Description(
        INFO,
        "{who} would not have resolved {name} ({type}): {reason}",
        UUID("0b142dd3-64aa-411b-96fe-692e47ae9945"),
        "Audit let it through. If the pod needs it, allow it before you enforce: `dnsguard learn` writes the line. A "
        "DNS server that would be refused as a loop belongs into pods.exclude.",
        limited=True,
        meaning="In Audit, a pod asked for a name that no rule of its policies allows, or that enforcing would refuse. "
        "It was answered, and nothing was opened for it.",
    ),
    EventKind.QUERY_REFUSED: Description(
        WARNING,
        "a packet of {who} was not taken as a query: {reason}",
        UUID("24c8198cf8af46abbf7f2ab0791ffbdf"),
        "Look at what the pod sends to port 53: only ordinary DNS questions are answered.",
        limited=True,
        meaning="The packet was malformed, or no plain question. It got an error or no reply, and was not forwarded.",
    ),
    EventKind.QUERY_LIMITED: Description(
        WARNING,
        "{who} is over its limit {limit}",
        UUID("08c11733c41b409b9eedc97e8c84358e"),
        "Find out why the pod asks so much, or raise the limit of that name under `limits`.",
        limited=True,
        meaning="What the pod asks beyond its share is not served, so that other pods keep theirs. In Audit it is, as "
        "far as the daemon can bear it.",
    ),
    EventKind.QUERY_FAILED: Description(
        WARNING,
        "{name} ({type}) of {who} could not be answered: {reason}",
        UUID("455da5bb2e47482ebfe1c757a62e908a"),
        "Look at what the reason names: the upstreams (`dnsguard status`), a limit, which may be raised, or the "
        "kernel, of which `lease_refused` and the kernel's log say more. At a stop there is nothing to do.",
        limited=True,
        meaning="The name is allowed, but there was no usable answer in time. The pod got SERVFAIL and opens nothing.",
    ),
    EventKind.QUERY_UNKNOWN_SOURCE: Description(
        WARNING,
        "a query from {pod_ip} on link {link} was dropped: no pod has that address there",
        UUID("c266135249ff467c8f9b040dbe917920"),
        "Nothing, for a pod that is just being set up. If it lasts, compare the link with `ip route` and `dnsguard "
        "pods`: a forged source, a route that the CNI did not make, or a pod beyond tables.pods.",
        limited=True,
        meaning="Whoever sends it is not known as a pod of that link, so no policy is known for it.",
    ),
    EventKind.FORWARDING_LOOP: Description(
        ERROR,
        "{who} asks from an address that serves an upstream: refused, it would go round in circles",
        UUID("702a313950bf4b23a3531c0c65c986b9"),
        "Add the DNS server's pod to pods.exclude.",
        limited=True,
        meaning="A DNS server that dnsguard asks is itself governed: its own questions come back here.",
    ),
    EventKind.ANSWER_WITHHELD: Description(
        WARNING,
        "an answer for {name} ({type}) was withheld from {who}, or a part of it: {reason}",
        UUID("4e8116b48d2b4bbca4032fa4f655a219"),
        "Where an address is closed that is meant to be reachable by name, change answers.protected or the rule that "
        "closes it. Raise a limit that is full; of a kernel that was late or refused, `lease_refused` says more.",
        limited=True,
        meaning="The answer named addresses that the pod must not get by name, or that could not be opened in time. "
        "It never saw them.",
    ),
    EventKind.ANSWER_AUDITED: Description(
        WARNING,
        "an answer for {name} ({type}) would have been withheld from {who}, or a part of it: {reason}",
        UUID("fe72e874-d67f-44ce-b1b4-9480299524e2"),
        "Audit let it through. Before you enforce, raise the limit, or change what closes the address; of a kernel "
        "that would not open it, `lease_refused` says more.",
        limited=True,
        meaning="In Audit, an answer was shown whole that would have lost an address, or have become SERVFAIL: a "
        "protected address, a rule that closes it, a limit, or a kernel that would not open it.",
    ),
    EventKind.ANSWER_STALE: Description(
        WARNING,
        "{who} got an answer for {name} ({type}) that is past its TTL: {reason}",
        UUID("49f7e1a6cd5647569ce8e4f788e52a10"),
        "Check the upstreams: none answered in time.",
        limited=True,
        meaning="No upstream answered, and the pod got the last known answer rather than none, within dns.serveStale.",
    ),
    EventKind.LEASE_OPENED: Description(
        DEBUG,
        "{address} opens to {who} for {name}",
        UUID("f0ccb39c0e544d8faa7ffbb4e88e65a5"),
        "Nothing to do.",
        limited=True,
        meaning="An answer named the address, and the pod may connect to it on the ports of the rule until the lease "
        "ends.",
    ),
    EventKind.LEASE_ENDED: Description(
        DEBUG,
        "{address} is closed to {who}: the lease of {name} ended",
        UUID("dd5e0abd2a1c4ee0a787b07d1b7b4b11"),
        "Nothing to do.",
        limited=True,
        meaning="The answer's time is over. Connections that are open go on; new ones need a new answer.",
    ),
    EventKind.LEASE_REFUSED: Description(
        ERROR,
        "addresses could not be opened: {reason}",
        UUID("effa8583c5104ababe3676e1c0f3c6af"),
        "For ENFILE, ENOSPC or no room, raise limits.leasesPerPod or tables.leases, which `dnsguard status` and "
        "`dnsguard pods` show in use; for anything else look at the kernel's log.",
        limited=True,
        meaning="The kernel or a limit did not take the addresses, so they are closed. An answer is given only when "
        "its addresses are open: whoever asked got SERVFAIL. After a change of policy, nobody had asked.",
    ),
    EventKind.LEASES_PURGED: Description(
        INFO,
        "{count} leases that the policy no longer justifies were removed",
        UUID("ba41b1e651cd407f99d195b7d3e3f89e"),
        "Nothing to do.",
        meaning="The policy changed, and these addresses are no longer allowed to the pods that had them.",
    ),
    EventKind.FLOW_DENIED: Description(
        INFO,
        "{who} may not connect to {address} port {port}/{protocol}: {reason}",
        UUID("3937973878234fcaa62b3f130bd99087"),
        "Where no rule allows it, or one denies it: if the pod needs it, allow its name or address block on that port; "
        "`dnsguard explain` shows what decided. Other reasons are of the packet, or of the daemon (`dnsguard status`): "
        "no rule mends them.",
        limited=True,
        meaning="The pod sent a packet to an address that is neither allowed by a block nor open by an answer, or one "
        "that no pod may send. It was dropped.",
    ),
    EventKind.FLOW_AUDITED: Description(
        INFO,
        "{who} would have been denied: {address} port {port}/{protocol}: {reason}",
        UUID("5c7f722c-ff09-4aa8-a490-046e11d356b3"),
        "Audit let it through. If the pod needs it, allow it before you enforce: `dnsguard learn` writes the line.",
        limited=True,
        meaning="In Audit, a pod began a flow that no rule of its policies allows. It passed. The reason names what "
        "resolved to the address, where that is known.",
    ),
    EventKind.FLOWS_CUT: Description(
        INFO,
        "{count} flows that the policy no longer justifies were cut",
        UUID("1f530db563394edd8e526aef60d8aad5"),
        "Nothing to do.",
        meaning="The policy changed, and these connections are no longer allowed. Their packets are dropped in both "
        "directions.",
    ),
    EventKind.SEEN_FILE_FAILED: Description(
        WARNING,
        "{what}: {reason}",
        UUID("ca85cb32-5b72-4283-ba57-29688e4bd871"),
        "What `dnsguard learn` has seen goes on in memory. Look at the folder of paths.state (room, owner, disk); "
        "where flows cannot be seen, at the kernel's log.",
        meaning="What learn has seen could not be read or written, or flows could not be looked at. Nothing that is "
        "enforced depends on it.",
    ),
    EventKind.UPSTREAM_DOWN: Description(
        WARNING,
        "upstream {upstream} does not answer: {reason}",
        UUID("b11dbb9ca77b47c38015e751d6c5274d"),
        "Check that the server runs and is reachable from this node: `dnsguard check --system` asks it.",
        meaning="It did not answer several times in a row. The other upstreams are asked instead; this one is tried "
        "every few seconds.",
    ),
    EventKind.UPSTREAM_FAILING: Description(
        WARNING,
        "upstream {upstream} answers, but with nothing of use: {reason}",
        UUID("8b3465c8-8be5-4c92-bca0-3187fdf47a39"),
        "Look at the server: whether it serves this node, and whether it reaches those that it asks itself.",
        meaning="Every answer of some seconds was a refusal, a failure or no sound message. The other upstreams are "
        "asked after it; where there are none, pods get SERVFAIL or what it said, and nothing opens.",
    ),
    EventKind.UPSTREAM_UP: Description(
        INFO,
        "upstream {upstream} answers again",
        UUID("ae17d0deb8d944508e3e54f70867c15c"),
        "Nothing to do.",
        meaning="It is asked again as before.",
    ),
    EventKind.KERNEL_STATE_REPAIRED: Description(
        WARNING,
        "somebody else's change is undone: {what}",
        UUID("c0aabd943a824de3a73436189ee14ca2"),
        "Find out what edits or flushes the node's rules; dnsguard's own must be left alone.",
        meaning="Another program or person removed or changed what dnsguard had put into the kernel, and it was put "
        "back.",
    ),
    EventKind.KERNEL_STATE_DAMAGED: Description(
        ERROR,
        "{what} is not as it should be and could not be repaired yet: {reason}",
        UUID("1ec81b391bb3470cbb0c7fb1bac55e86"),
        "It is tried again by itself. Meanwhile look at the reason: no memory or no room needs some; else the kernel's "
        "log and `nft list table inet dnsguard` show what stands in the way.",
        meaning="The kernel did not take a change, or what somebody else had changed could not be put back. Until it "
        "can, pods may be cut off, new pods have nothing, and flows that a new policy forbids may go on.",
    ),
    EventKind.LINK_WITHOUT_EBPF: Description(
        WARNING,
        "eBPF does not decide on {links}, nftables still does: {reason}",
        UUID("241271df-256d-4333-96dc-69d0094b9396"),
        "Mend what the reason names: remove a program in front, mount the bpffs, leave a link that is no Ethernet out "
        "of pods.interfaces. It is tried again every second; `dnsguard status` shows it as long as it lasts.",
        meaning="The programs are not, or not the first, on these links. What nftables closes stays closed.",
    ),
    EventKind.CONNTRACK_FULL: Description(
        ERROR,
        "connection tracking is full ({count} of {limit}): the kernel drops whatever begins a flow",
        UUID("f204f161-4e8d-4fd4-81b9-a75982a9ea31"),
        "Find out what opens so many flows (`conntrack -L`), or raise net.netfilter.nf_conntrack_max.",
        meaning="Nothing opens on this node because of it: flows that are open go on, and new ones fail, whoever "
        "begins them. Names that are cached are answered; others get SERVFAIL while no upstream can be asked.",
    ),
    EventKind.CONNTRACK_HAS_ROOM: Description(
        INFO,
        "connection tracking has room again ({count} of {limit})",
        UUID("8b47b385-640e-41b1-9d78-4f613cd8a780"),
        "Nothing to do.",
        meaning="New flows begin as before.",
    ),
    EventKind.CHANGES_MISSED: Description(
        WARNING,
        "the kernel told of more changes of {what} than could be read: all of it was read again",
        UUID("952cb980-08e3-47d9-9007-6a5a0385517d"),
        "Nothing to do once. If it happens often, find out what changes so much, or give dnsguard more of a processor.",
        meaning="Notifications overflowed, because very much changed at once or because dnsguard could not run. What "
        "is in the kernel now is what dnsguard goes by; nothing was missed in the end.",
    ),
    EventKind.STATE_FILE_SET_ASIDE: Description(
        WARNING,
        "{path} cannot be used and is now {aside}: {reason}",
        UUID("b67b4382-17f4-4a5a-b75c-eb853fb39521"),
        "Nothing to do now. Delete the file set aside once you know what damaged it.",
        meaning="A file that dnsguard keeps for its next start is not what was written, or is another version's. The "
        "kernel says what is open, so nothing opens because of it, and a new file is begun. Without names.sqlite "
        "nothing closes either; without owed.json all open flows are judged by the policy that is in force.",
    ),
    EventKind.STATE_FILE_UNWRITABLE: Description(
        WARNING,
        "{path} cannot be written: {reason}",
        UUID("d60cd3bc-559d-4b50-b908-8b81671d8b08"),
        "Make room on that file system, or let dnsguard write there; it tries again by itself, at the next change.",
        meaning="What dnsguard keeps for its next start is not kept now. Queries and packets do not notice. A restart "
        "meanwhile keeps what is open until its lease ends, and closes it when a policy changes. Without owed.json, a "
        "daemon that is killed in a change does not have the next one cut the flows that the change forbids.",
    ),
    EventKind.STATE_FILE_WRITTEN: Description(
        INFO,
        "{path} is written again",
        UUID("58bf544d-b1d0-4c9b-9dbd-262468fbea97"),
        "Nothing to do.",
        meaning="The file holds all that it should again; the next restart finds everything.",
    ),
    EventKind.DESCRIPTORS_SHORT: Description(
        WARNING,
        "file descriptors are short: {reason}",
        UUID("8013045e-858e-4ba9-8f19-9db26be30674"),
        "`dnsguard status` says how many are TCP connections of pods: lower limits.tcpConnections, or raise "
        "LimitNOFILE= of the unit. If they are few, look at what else is open in /proc/PID/fd.",
        meaning="The process may open only so many sockets and files. New TCP connections of pods are turned away, so "
        "that queries over UDP and the upstreams have what they need; what has none gets SERVFAIL.",
    ),
    EventKind.DESCRIPTORS_FREE: Description(
        INFO,
        "there are file descriptors again",
        UUID("9c63a62a-2f62-4104-8d0c-145eff987f38"),
        "Nothing to do.",
        meaning="TCP connections of pods are taken again.",
    ),
    EventKind.RUNTIME_RESTORED: Description(
        WARNING,
        "somebody removed {what} from {path}: made again",
        UUID("b76c9935-a4eb-43b0-8356-a4807461b250"),
        "Find out what cleans that folder, and let it spare dnsguard's own.",
        meaning="Without the control socket no command reaches the daemon, and without the lock a second daemon could "
        "start beside it. Queries and packets do not need them.",
    ),
    EventKind.RUNTIME_LOST: Description(
        ERROR,
        "{what} went from {path} and cannot be made again: {reason}",
        UUID("d8041957-8be9-44f7-8d83-aa084b3e8bda"),
        "Under systemd dnsguard ends and is started again, with the folder made anew. Else make the folder, for its "
        "user. Find out what removed it.",
        meaning="The folder of the lock and the control socket was removed, and a service cannot make it itself. "
        "Queries wait meanwhile, as in any restart; enforcement stays.",
    ),
    EventKind.EVENTS_SUPPRESSED: Description(
        WARNING,
        "{lines} more lines about {about} were left out: {kinds}",
        UUID("0522d1847b9240419e886aa5190a6049"),
        "Raise limits.logLines to see each line about a pod. What the node tells of itself has a fixed share: look at "
        "the lines before this one for what to do.",
        meaning="Each pod has a share of log lines, and so has each link, upstream and the like. These were left out "
        "and counted, the kind that came last at the end; the metrics hold all that happened.",
    ),
    EventKind.LOG_LINES_DROPPED: Description(
        WARNING,
        "{lines} log lines were dropped: whoever takes the log took none",
        UUID("045b1edc998b4dfbbae22048baff6eda"),
        "If it happens again, look at journald (`systemctl status systemd-journald`) or at what reads standard error.",
        meaning="Whoever takes the log, journald or what reads standard error, stood still. Nothing waited for it: "
        "what did not fit into 1 MiB of memory is lost, and the metrics hold all that happened.",
    ),
    EventKind.WATCHER_CUT_OFF: Description(
        WARNING,
        "somebody who watches did not read and was cut off, with {lost} events unseen",
        UUID("b835a16ac37140ff826567169da27166"),
        "Start `dnsguard monitor` again, and let what reads its output read faster; --type and --pod make it less.",
        meaning="Whoever watches live and takes nothing for 30 s loses the connection, so that nothing is kept for it.",
    ),
    EventKind.INTERNAL_ERROR: Description(
        ERROR,
        "unexpected error in {where}: {reason}",
        UUID("0e15d307ae1940af96db27ac3dc8f437"),
        "A defect in dnsguard: please report it with this line and the lines below it.",
        limited=True,
        meaning="Something happened that the code did not expect. It was contained where it happened: a query got "
        "SERVFAIL, a connection was closed, or a task of the daemon is done again.",
    ),
}
