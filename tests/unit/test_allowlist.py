"""allowlist.yaml into policies and entries. What is wrong with a file is tested by the files in tests/broken."""

from __future__ import annotations

import re
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnsguard.core.model import (
    Action,
    BlockPeer,
    DnsMode,
    DomainPeer,
    Origin,
    PodEntry,
    PortRange,
    Protocol,
    Rule,
    Tier,
)
from dnsguard.core.names import parse_pattern
from dnsguard.core.ports import merge_ports
from dnsguard.sources.allowlist import AllowlistReader, Surroundings, diagnose

ROOT = Path(__file__).parents[2]


def read(text: str) -> list[PodEntry]:
    reader = AllowlistReader(text, "a.yaml")
    entries = list(reader.entries())
    assert reader.diagnostics() == []
    return entries


def warnings(text: str, around: Surroundings | None = None) -> list[str]:
    found = diagnose(text.encode(), "a.yaml", around)
    assert all(one.severity == "warning" for one in found)
    return [one.text for one in found]


def test_a_policy_arrives_as_it_was_written() -> None:
    entries = read(
        """\
policies:
  backend:
    dns: PassThrough
    egress:
      - to:
          - domainNames: [db.example.com, "*.S3.amazonaws.com."]
            except: [secret.s3.amazonaws.com]
          - ipBlock: {cidr: 10.0.0.0/16, except: [10.0.5.0/24]}
        ports: [{port: 5432}, {protocol: UDP, port: 8000, endPort: 8010}, {protocol: SCTP}]
pods:
  10.244.0.5: {name: shop/backend-0, policies: [backend]}
"""
    )

    (entry,) = entries
    assert (entry.network, entry.name) == (ip_network("10.244.0.5"), "shop/backend-0")
    assert entry.origin == Origin("a.yaml", 11, 3)
    (policy,) = entry.policies
    assert (policy.name, policy.dns, policy.origin) == ("backend", DnsMode.PASS_THROUGH, Origin("a.yaml", 2, 3))
    names = (parse_pattern("db.example.com"), parse_pattern("*.s3.amazonaws.com"))
    assert policy.rules == (
        Rule(
            domains=(DomainPeer(names, (parse_pattern("secret.s3.amazonaws.com"),)),),
            blocks=(BlockPeer(ip_network("10.0.0.0/16"), (ip_network("10.0.5.0/24"),)),),
            ports=(
                PortRange(Protocol.TCP, 5432, 5432),
                PortRange(Protocol.UDP, 8000, 8010),
                PortRange(Protocol.SCTP, 0, 65535),
            ),
            action=Action.ACCEPT,
            tier=Tier.POD,
            origin=Origin("a.yaml", 5, 9),
        ),
    )


def test_the_shorthand_is_a_policy_of_its_own_for_those_names_on_every_port() -> None:
    (entry,) = read("pods:\n  10.244.0.6: [github.com, api.github.com]\n")

    (policy,) = entry.policies
    assert (entry.name, policy.name) == (None, "10.244.0.6")
    (rule,) = policy.rules
    assert rule.ports == ()
    assert rule.domains == (DomainPeer((parse_pattern("github.com"), parse_pattern("api.github.com"))),)
    assert rule.origin == Origin("a.yaml", 2, 15)


def test_pods_of_one_policy_share_one_object() -> None:
    first, second = read(
        "policies: {web: {egress: []}}\npods: {10.0.0.1: {policies: [web]}, 10.0.0.0/24: {policies: [web]}}\n"
    )

    assert first.policies[0] is second.policies[0]


def test_policies_may_stand_after_the_pods_that_use_them() -> None:
    (entry,) = read("pods: {10.0.0.1: {policies: [web]}}\npolicies: {web: {egress: []}}\n")

    assert [policy.name for policy in entry.policies] == ["web"]


def test_addresses_are_the_same_however_they_are_written() -> None:
    (entry,) = read('pods:\n  "FD00:0010::0005": [a.example.com]\n')

    assert entry.network == ip_network("fd00:10::5/128")


@given(st.lists(st.builds(PortRange, st.sampled_from(Protocol), st.integers(0, 60), st.integers(0, 60)), max_size=8))
def test_merged_ports_are_the_same_ports_sorted_and_apart(ranges: list[PortRange]) -> None:
    ranges = [one for one in ranges if one.first <= one.last]

    merged = merge_ports(ranges)

    def ports(written: list[PortRange]) -> set[tuple[int, int]]:
        return {(one.protocol, port) for one in written for port in range(one.first, one.last + 1)}

    assert ports(list(merged)) == ports(ranges)
    assert all(one.protocol < two.protocol or one.last + 1 < two.first for one, two in pairwise(merged))


def test_a_pattern_is_not_called_covered_when_ports_differ_or_an_except_takes_it_out() -> None:
    found = warnings(
        """\
policies:
  web:
    egress:
      - to: [{domainNames: ["*.example.com"], except: [api.example.com]}]
      - to: [{domainNames: [api.example.com]}]
      - to: [{domainNames: [www.example.com]}]
        ports: [{port: 443}]
pods: {10.0.0.1: {policies: [web]}}
"""
    )

    assert found == []


def test_a_single_address_inside_a_network_is_no_mistake() -> None:
    assert warnings("pods: {10.0.0.0/24: [a.example.com], 10.0.0.1: [b.example.com]}") == []


def test_blocks_are_compared_with_the_protected_ranges_they_are_given() -> None:
    text = "policies: {p: {egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16}}]}]}}\npods: {10.0.0.1: {policies: [p]}}\n"

    inside = warnings(text, Surroundings(protected=(ip_network("10.0.0.0/8"),)))
    beside = warnings(text, Surroundings(protected=(ip_network("10.1.0.0/17"), ip_network("fd00::/8"))))

    assert len(inside) == 1
    assert beside == []


def test_an_allow_by_default_changes_what_is_said_of_a_pod_without_a_policy() -> None:
    (found,) = warnings("pods: {10.0.0.1: []}", Surroundings(default=Action.ACCEPT))

    assert found == "pod 10.0.0.1 has no policy: everything is open to it"


def test_the_shipped_allowlist_is_valid_and_so_is_the_example_in_it() -> None:
    text = (ROOT / "config/allowlist.yaml").read_text()
    example = _example(text)

    assert diagnose(text.encode(), "a") == []
    assert diagnose(example.encode(), "a") == []
    assert "backend" in example


def _example(text: str) -> str:
    """The commented lines from `# policies:` to the first line without a comment."""
    lines = text[text.index("# policies:") :].split("\n\n")[0].splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines)


def test_the_example_in_the_reference_is_valid() -> None:
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.DOTALL)

    assert example is not None
    assert diagnose(example[1].encode(), "a") == []


_KEYS = "policies pods web egress to ports domainNames except ipBlock cidr port endPort protocol name dns 10.0.0.1 ::1"
_VALUES = "[ ] { } , - *.a.b a.b web 443 10.0.0.0/16 10.0.0.1 TCP ~ 012 'x' # \n"
_WORDS = st.sampled_from([*(f"{key}:" for key in _KEYS.split()), *_VALUES.split(" "), "\n ", "\n  "])


@given(st.lists(_WORDS, max_size=40).map(lambda words: " ".join(words).encode()) | st.binary(max_size=80))
def test_any_octets_give_diagnostics_and_never_an_exception(content: bytes) -> None:
    for one in diagnose(content, "a", Surroundings((ip_network("10.0.0.0/8"),), frozenset([ip_network("10.0.0.1")]))):
        assert str(one).startswith(f"a:{one.origin.line}:{one.origin.column}: ")


def _many(count: int, form: str) -> str:
    return "".join(form.format(n, n >> 8, n & 255) for n in range(count))


_WORST = {
    "wrong references": "policies:\n"
    + _many(2000, "  policy-{0}: {{egress: []}}\n")
    + "pods:\n"
    + _many(2000, "  10.0.{1}.{2}: {{policies: [polcy-{0}]}}\n"),
    "unquoted stars": "pods:\n  10.0.0.1:\n" + _many(20_000, "    - *.host-{0}.example.com\n"),
    "a long key": "x" * 1_000_000 + ": 1",
    "nested networks": "pods:\n" + "".join(f"  10.0.0.0/{bits}: [h{bits}.example.com]\n" for bits in range(8, 33)),
    "excepts": "policies:\n  p:\n    egress:\n    - to:\n      - domainNames:\n"
    + _many(5000, '          - "*.h{0}.example.com"\n')
    + "        except:\n"
    + _many(5000, "          - x.h{0}.example.com\n"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", _WORST.values(), ids=_WORST)
def test_a_large_file_full_of_mistakes_is_not_checked_for_ever(text: str) -> None:
    assert diagnose(text.encode(), "a") != []


def test_the_nearest_word_is_not_looked_for_without_end() -> None:
    found = diagnose(_WORST["wrong references"].encode(), "a")

    hinted = [one for one in found if "did you mean" in one.text]
    assert 0 < len(hinted) < 100
