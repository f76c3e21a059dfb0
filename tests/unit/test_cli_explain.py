"""`dnsguard explain` from files: the verdict, and the lines that decided it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dnsguard.cli import main
from dnsguard.control.calls import CallError, LeaseRow
from dnsguard.control.explain import (
    Subject,
    explain,
    explain_connection,
    explain_name,
    ports_text,
    read_port,
    read_type,
)
from dnsguard.core.compile import compile_program
from dnsguard.core.model import (
    Action,
    Address,
    BlockPeer,
    DomainPeer,
    Origin,
    Policy,
    PortRange,
    Protocol,
    Rule,
    Tier,
)
from dnsguard.core.names import parse_pattern
from dnsguard.core.policy import effective

ALLOWLIST = """\
apiVersion: dnsguard/v1
kind: Allowlist
policies:
  backend:
    egress:
      - to:
          - domainNames: [db.example.com, "*.s3.amazonaws.com"]
            except: [secret.s3.amazonaws.com]
        ports: [{protocol: TCP, port: 5432}]
      - to:
          - ipBlock: {cidr: 10.0.0.0/16, except: [10.0.5.0/24]}
  open:
    dns: PassThrough
    egress: []
pods:
  10.244.0.5: {name: shop/backend-0, policies: [backend]}
  fd00:10:244::5: {name: shop/backend-0, policies: [backend]}
  10.244.0.6: [github.com]
  10.244.0.7: {policies: [open]}
"""


class Files:
    def __init__(self, folder: Path) -> None:
        self.config, self.allowlist = folder / "config.yaml", folder / "allowlist.yaml"
        self.config.write_text(
            f"upstreams: [10.96.0.10]\nallowlist: {self.allowlist}\n"
            f"paths: {{runtime: {folder}}}\ndefaultAction: Allow\n"
        )
        self.allowlist.write_text(ALLOWLIST)

    def explain(self, *arguments: str) -> int:
        return main(["explain", *arguments, "--config", str(self.config)])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def told(files: Files, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = files.explain(*arguments, "--json", "--offline")
    return code, json.loads(capsys.readouterr().out)


def test_an_allowed_name_names_the_rule_and_its_line(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, explanation = told(files, capsys, "shop/backend-0", "DB.example.com.")
    assert code == 0
    assert explanation["verdict"] == "allowed"
    assert explanation["reason"] == "its addresses open on tcp/5432"
    (rule,) = explanation["rules"]
    assert rule["origin"].startswith(f"{files.allowlist}:6:")
    assert rule["peers"] == ["db.example.com"]
    assert explanation["source"] == "files"


def test_of_a_rules_patterns_those_that_match_are_told(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    _, explanation = told(files, capsys, "10.244.0.5", "a.b.s3.amazonaws.com")
    assert explanation["rules"][0]["peers"] == ["*.s3.amazonaws.com"]


def test_entries_that_disagree_are_an_error_and_no_explanation(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ALLOWLIST.replace(
        "5: {name: shop/backend-0, policies: [backend]}", "5: {name: shop/backend-0, policies: [open]}", 1
    )
    files.allowlist.write_text(text)
    assert files.explain("shop/backend-0", "db.example.com", "--offline") == 1
    assert f"{files.allowlist}:17:3: error:" in capsys.readouterr().err


def test_a_denied_name_ends_with_3(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, explanation = told(files, capsys, "10.244.0.5", "evil.test")
    assert (code, explanation["verdict"], explanation["reason"]) == (3, "denied", "no rule allows this name")


def test_an_excepted_name_says_so(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, explanation = told(files, capsys, "10.244.0.5", "secret.s3.amazonaws.com")
    assert code == 3
    assert "except" in explanation["reason"]


def test_an_ancestor_of_an_allowed_name_says_what_it_is_answered(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    code, explanation = told(files, capsys, "10.244.0.5", "example.com")
    assert code == 3
    assert "NODATA" in explanation["reason"]


def test_an_address_block_opens_without_a_lease(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, explanation = told(files, capsys, "10.244.0.5", "10.0.1.1", "80")
    assert (code, explanation["reason"]) == (0, "an address block decides: Accept")
    assert explanation["rules"][0]["peers"] == ["10.0.0.0/16 except 10.0.5.0/24"]


def test_what_a_block_excepts_is_denied(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, explanation = told(files, capsys, "10.244.0.5", "10.0.5.1", "80/udp")
    assert (code, explanation["reason"]) == (3, "no rule opens this port")


def test_an_address_that_only_a_name_opens_says_which(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, explanation = told(files, capsys, "10.244.0.5", "192.0.2.7", "5432")
    assert code == 3
    assert "opens only as the answer" in explanation["reason"]
    assert explanation["rules"][0]["peers"][0] == "db.example.com"


def test_pass_through_resolves_and_opens_nothing(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, explanation = told(files, capsys, "10.244.0.7", "any.test")
    assert code == 0
    assert "PassThrough" in explanation["reason"]


def test_a_pod_that_no_policy_selects_has_the_default(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, explanation = told(files, capsys, "10.9.9.9", "any.test")
    assert (code, explanation["reason"]) == (0, "no policy selects this pod, and defaultAction is Allow")
    code, explanation = told(files, capsys, "10.9.9.9", "192.0.2.1", "1")
    assert (code, explanation["reason"]) == (0, "no rule matches, and defaultAction is Allow")


def test_the_words_for_people_hold_verdict_rule_and_place(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.explain("shop/backend-0", "db.example.com") == 0
    out, err = capsys.readouterr()
    assert out.startswith("verdict: allowed: its addresses open on tcp/5432\npod:     shop/backend-0\n")
    assert f"{files.allowlist}:6:" in out
    assert err == "the daemon is not running: this is what the files say\n"


def test_another_allowlist_can_be_tried(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("apiVersion: dnsguard/v1\nkind: Allowlist\npods: {10.244.0.5: [evil.test]}\n")
    code, _ = told(files, capsys, "10.244.0.5", "evil.test", "--allowlist", str(other))
    assert code == 0


def test_a_broken_allowlist_is_told_as_check_tells_it(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.allowlist.write_text(ALLOWLIST.replace("[github.com]", "[git hub]"))
    assert files.explain("10.244.0.6", "github.com", "--offline") == 1
    assert f"{files.allowlist}:18:" in capsys.readouterr().err


def test_a_name_that_no_pod_has_is_an_error(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.explain("shop/absent", "x.test", "--offline") == 1
    assert "no pod called shop/absent" in capsys.readouterr().err


@pytest.mark.parametrize("pod", ["10.244.0.9", "fd00:10:244:0::9"])
def test_an_excluded_pod_is_told_to_be_one(pod: str, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    with files.config.open("a") as config:
        config.write('pods: {exclude: [10.244.0.9, "fd00:10:244::9"]}\n')
    assert files.explain(pod, "x.test", "--offline") == 1
    assert capsys.readouterr().err == f"{pod} is in pods.exclude: it is neither intercepted nor enforced\n"


@pytest.mark.parametrize(
    ("detail", "text"), [("0", "not a port"), ("65536", "not a port"), ("1/icmp", "not a protocol")]
)
def test_a_wrong_port_is_a_usage_error(
    detail: str, text: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.explain("10.244.0.5", "192.0.2.1", detail, "--offline") == 2
    assert text in capsys.readouterr().err


def test_a_wrong_type_is_a_usage_error(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.explain("10.244.0.5", "db.example.com", "443", "--offline") == 2
    assert "443 is not a DNS type" in capsys.readouterr().err


def test_a_name_that_is_none_says_what_to_write(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.explain("10.244.0.5", "bücher.ch", "--offline") == 1
    assert "xn--bcher-kva.ch" in capsys.readouterr().err


# ---- with leases, as the daemon explains


HTTPS = (PortRange(Protocol.TCP, 443, 443),)
LEASE: LeaseRow = {
    "pod": "a",
    "address": "192.0.2.7",
    "scope": "tcp_443",
    "ports": "tcp/443",
    "names": ["x.test"],
    "remaining": 30.0,
}
NAMED = Rule((DomainPeer((parse_pattern("x.test"),)),), ports=HTTPS, origin=Origin("a.yaml", 5, 7))


def subject(*rules: Rule, leases: tuple[LeaseRow, ...] = (LEASE,)) -> Subject:
    policy = effective((Policy("web", rules),), Action.DENY)
    return Subject("a", policy, compile_program(policy), Address(bytes(4)), leases, live=True)


THERE = Address(bytes([192, 0, 2, 7]))


def test_a_live_lease_opens_its_port_and_names_its_rule() -> None:
    explanation = explain_connection(subject(NAMED), THERE, Protocol.TCP, 443)
    assert (explanation["verdict"], explanation["reason"]) == ("allowed", "a live lease opens it")
    assert [rule["origin"] for rule in explanation["rules"]] == ["a.yaml:5:7"]
    assert explanation["leases"] == [LEASE]
    assert explanation["source"] == "live"


def test_another_port_of_a_leased_address_is_denied_and_says_what_is_open() -> None:
    explanation = explain_connection(subject(NAMED), THERE, Protocol.TCP, 80)
    assert (explanation["verdict"], explanation["reason"]) == ("denied", "its leases open tcp/443 only")


def test_a_deny_before_the_lease_wins_and_is_named() -> None:
    import ipaddress

    block = BlockPeer(ipaddress.ip_network("192.0.2.0/24"))
    deny = Rule((), (block,), action=Action.DENY, tier=Tier.ADMIN, origin=Origin("a.yaml", 2, 3))
    explanation = explain_connection(subject(deny, NAMED), THERE, Protocol.TCP, 443)
    assert (explanation["verdict"], explanation["reason"]) == ("denied", "an address block decides: Deny")
    assert [rule["origin"] for rule in explanation["rules"]] == ["a.yaml:2:3"]


def test_without_the_lease_a_live_explanation_says_that_none_holds() -> None:
    explanation = explain_connection(subject(NAMED, leases=()), THERE, Protocol.TCP, 443)
    assert explanation["verdict"] == "denied"
    assert explanation["reason"].startswith("no live lease holds this address")


def test_a_name_lists_the_leases_it_holds() -> None:
    other: LeaseRow = {**LEASE, "names": ["y.test"]}
    assert explain_name(subject(NAMED, leases=(LEASE, other)), "x.test")["leases"] == [LEASE]


def test_a_pattern_above_or_beside_the_name_is_not_told_as_matching() -> None:
    peer = DomainPeer(tuple(map(parse_pattern, ("x.test", "*.x.test", "*.a.x.test"))))
    assert explain_name(subject(Rule((peer,))), "a.x.test")["rules"][0]["peers"] == ["*.x.test"]


@pytest.mark.parametrize("kind", ["ANY", "AXFR"])
def test_types_that_are_not_forwarded_say_so(kind: str) -> None:
    assert explain_name(subject(NAMED), "x.test", kind)["reason"].startswith("allowed, but")


@pytest.mark.parametrize("text", ["a", "aaaa", "TYPE65280", "https"])
def test_types_are_read_in_any_case(text: str) -> None:
    assert read_type(text) == text.upper()


@pytest.mark.parametrize("text", ["", "443", "TYPE65536", "TYPE", "TYPEx", "OPT"])
def test_anything_else_is_no_type(text: str) -> None:
    with pytest.raises(CallError, match="is not a DNS type"):
        read_type(text)


def test_a_rule_of_many_names_tells_the_first_and_how_many_more() -> None:
    peer = DomainPeer(tuple(parse_pattern(f"n{n}.test") for n in range(1000)))
    explanation = explain_connection(subject(Rule((peer,)), leases=()), THERE, Protocol.TCP, 443)
    peers = explanation["rules"][0]["peers"]
    assert (len(peers), peers[0], peers[-1]) == (51, "n0.test", "and 950 more")


@pytest.mark.parametrize("question", [{}, {"address": "192.0.2.1"}, {"port": "1"}])
def test_a_call_without_a_subject_is_a_usage_error(question: dict[str, str]) -> None:
    with pytest.raises(CallError, match="needs a name, or an address and a port"):
        explain(subject(NAMED), question)


def test_a_call_with_a_wrong_address_is_a_usage_error() -> None:
    with pytest.raises(CallError, match="not an IP address"):
        explain(subject(NAMED), {"address": "x", "port": "1"})


def test_ports_are_read_with_their_protocol() -> None:
    assert read_port("53", "udp") == (Protocol.UDP, 53)


def test_no_ports_are_any_port() -> None:
    assert ports_text(()) == "any port"
    assert ports_text((*HTTPS, PortRange(Protocol.UDP, 1, 9))) == "tcp/443 udp/1-9"
