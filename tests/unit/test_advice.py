"""What `explain` advises: applied to the file, it allows exactly what was denied."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dnsguard.cli import main
from dnsguard.control.calls import Addition
from dnsguard.control.explain import Subject
from dnsguard.core.compile import compile_program
from dnsguard.core.model import Action, Address, DomainPeer, Name, Policy, PortRange, Ports, Protocol, Rule
from dnsguard.core.names import parse_name, parse_pattern
from dnsguard.core.policy import effective
from dnsguard.daemon.why import LATER, SHORT, Case, denial_rows, explain_all
from dnsguard.engine.contracts import EventKind
from dnsguard.observe.recent import Recent

BLOCK = """\
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
        ports: [{protocol: TCP, port: 80, endPort: 90}]
  empty:
    egress: []
  mail:
    egress:
      - to: [{domainNames: [mail.example.org]}]
      - to: [{ipBlock: {cidr: 192.0.2.0/28}}]
pods:
  10.244.0.5: {name: shop/backend-0, policies: [backend]}
  fd00:10:244::5: {name: shop/backend-0, policies: [backend]}
  10.244.0.6: [github.com]
  10.244.0.7: {policies: [empty]}
  10.244.0.8:
    - github.com
  10.244.0.9: {policies: [mail]}
"""
FLOW = """\
{apiVersion: dnsguard/v1, kind: Allowlist, policies: {backend: {egress: [{to: [{domainNames: [db.example.com]}]}]},
  spread: {egress: [
    {to: [{domainNames: [a.example.com]}],
     ports: [{protocol: TCP, port: 443}]}]}},
 pods: {10.244.0.5: {policies: [backend]}, 10.244.0.6: {policies: [spread]}}}
"""
EMPTY = """\
policies: {}
pods:
  10.244.0.4: {name: shop/a, policies: []}
  10.244.0.5: {name: shop/b}
  10.244.0.6: []
  10.244.0.7:
    name: shop/c
    policies: []
  "fd00:10:244::7": {policies: [ ]}
"""
BRACES = """\
policies: {pod-10.244.0.7: {egress: []}}
pods: {10.244.0.9: {policies: [pod-10.244.0.7]}, 10.244.0.8: {policies: []}}
"""
PODS = """\
pods:

  # the first of them
    10.244.0.9: [github.com]
"""
PODS_FIRST = """\
pods:
  10.244.0.9: {policies: [web]}
policies:
  web:
    egress: []
"""


class Files:
    def __init__(self, folder: Path) -> None:
        self.config, self.allowlist = folder / "config.yaml", folder / "allowlist.yaml"
        self.config.write_text(f"upstreams: [10.96.0.10]\nallowlist: {self.allowlist}\npaths: {{runtime: {folder}}}\n")

    def told(self, capsys: pytest.CaptureFixture[str], *question: str) -> Any:
        code = main(["explain", *question, "--config", str(self.config), "--json", "--offline"])
        out, err = capsys.readouterr()
        assert code in (0, 3), err
        return json.loads(out)

    def add(self, addition: Addition) -> None:
        """Do what the advice says."""
        assert addition["file"] == str(self.allowlist)
        lines = self.allowlist.read_text().splitlines(keepends=True)
        at, column = addition["line"] - 1, addition["column"] - 1
        if at == len(lines):
            lines.append("")
        lines[at] = lines[at][:column] + addition["text"] + lines[at][column:]
        self.allowlist.write_text("".join(lines))
        if "also" in addition:
            self.add(addition["also"])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.allowlist.write_text(BLOCK)
    return files


@pytest.mark.parametrize(
    ("text", "question"),
    [
        (BLOCK, ("10.244.0.5", "dx.example.com")),
        (BLOCK, ("10.244.0.5", "secret.s3.amazonaws.com")),
        (BLOCK, ("10.244.0.5", "s3.amazonaws.com")),
        (BLOCK, ("10.244.0.5", "elsewhere.test")),
        (BLOCK, ("10.244.0.5", "_srv.odd\\.label.test")),
        (BLOCK, ("10.244.0.5", "10.0.5.1", "80")),
        (BLOCK, ("10.244.0.5", "10.0.4.1", "443")),
        (BLOCK, ("10.244.0.5", "10.0.4.1", "53/udp")),
        (BLOCK, ("shop/backend-0", "203.0.113.9", "443")),
        (BLOCK, ("fd00:10:244::5", "2001:db8::9", "443")),
        (BLOCK, ("10.244.0.6", "api.github.com")),
        (BLOCK, ("10.244.0.7", "first.test")),
        (BLOCK, ("10.244.0.7", "203.0.113.9", "443")),
        (BLOCK, ("10.244.0.8", "api.github.com")),
        (BLOCK, ("10.244.0.77", "new.test")),
        (BLOCK, ("fd00:10:244::77", "new.test")),
        (BLOCK, ("10.244.0.77", "203.0.113.9", "443")),
        *((EMPTY, (pod, "new.test")) for pod in ("10.244.0.3", "10.244.0.4", "10.244.0.6", "10.244.0.7")),
        *((EMPTY, (pod, "203.0.113.9", "53/udp")) for pod in ("10.244.0.3", "10.244.0.4", "10.244.0.7")),
        (EMPTY, ("fd00:10:244::7", "2001:db8::9", "443")),
        *((BRACES, (pod, "new.test")) for pod in ("10.244.0.7", "10.244.0.8", "10.244.0.9")),
        *((PODS, ("10.244.0.7", *to)) for to in (("new.test",), ("203.0.113.9", "443"))),
        (PODS_FIRST, ("10.244.0.7", "new.test")),
        (FLOW, ("10.244.0.5", "dx.example.com")),
        (FLOW, ("10.244.0.5", "203.0.113.9", "443")),
        (FLOW, ("10.244.0.6", "aa.example.com")),
    ],
)
def test_what_is_advised_allows_what_was_denied_and_the_file_stays_valid(
    text: str, question: tuple[str, ...], files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.allowlist.write_text(text)
    before = files.told(capsys, *question)
    files.add(before["add"])

    assert before["verdict"] == "denied"
    after = files.told(capsys, *question)
    assert (after["verdict"], after["nearest"], after["add"]) == ("allowed", [], None)
    short = [row["origin"] for row in after["rules"] if row["ports"] == "any port"]
    assert bool(short) == ("opens every port" in before["add"]["remark"])


@pytest.mark.parametrize(
    ("question", "miss", "text"),
    [
        (("10.244.0.5", "s3.amazonaws.com"), "apex", "*.s3.amazonaws.com matches the names under s3.amazonaws.com"),
        (("10.244.0.5", "secret.s3.amazonaws.com"), "excepted", "the except secret.s3.amazonaws.com takes it out"),
        (("10.244.0.5", "x.db.example.com"), "below", "db.example.com matches itself only"),
        (("10.244.0.5", "db.example.co"), "typo", "db.example.com is one letter away"),
        (("10.244.0.5", "web.example.com"), "label", "db.example.com differs in one label"),
        (("10.244.0.5", "db.example.com.shop.svc.cluster.local"), "searched", "if a search list put shop.svc"),
        (("10.244.0.5", "mail.example.org"), "elsewhere", "policy mail allows it, and this pod does not have"),
        (("10.244.0.5", "10.0.4.1", "443"), "port", "holds 10.0.4.1, but opens tcp/80-90, not tcp/443"),
        (("10.244.0.5", "10.0.5.1", "80"), "excepted", "10.0.0.0/16 holds 10.0.5.1, and its except 10.0.5.0/24"),
        (("10.244.0.5", "10.1.0.1", "80"), "beside", "10.0.0.0/16 ends close to 10.1.0.1"),
        (("10.244.0.5", "192.0.2.1", "9"), "elsewhere", "policy mail allows it"),
    ],
)
def test_the_rule_that_came_nearest_is_told_with_how_it_missed(
    question: tuple[str, ...], miss: str, text: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    nearest = files.told(capsys, *question)["nearest"][0]

    assert nearest["miss"] == miss
    assert text in nearest["text"]
    assert nearest["origin"].startswith(f"{files.allowlist}:")


def test_a_name_that_a_search_list_made_longer_needs_no_rule(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.told(capsys, "10.244.0.5", "db.example.com.cluster.local")["add"] is None


def test_a_new_rule_has_the_ports_of_the_one_that_came_nearest(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    addition = files.told(capsys, "10.244.0.5", "dx.example.com")["add"]

    line = "      - {to: [{domainNames: [dx.example.com]}], ports: [{protocol: TCP, port: 5432}]}\n"
    assert (addition["line"], addition["column"], addition["text"]) == (6, 1, line)


def test_a_policy_of_another_pod_says_more_than_a_name_that_is_like_it(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = "\n        ports: [{protocol: TCP, port: 25}]"
    files.allowlist.write_text(BLOCK.replace("mail.example.org]}]", f"mail.example.com]}}]{ports}"))

    told = files.told(capsys, "10.244.0.5", "mail.example.com")

    assert [row["miss"] for row in told["nearest"]] == ["elsewhere", "label"]
    assert "port: 25}" in told["add"]["text"]
    assert "write those that the pod uses" in told["add"]["remark"]


def test_the_first_pod_goes_into_the_list_as_it_was_shipped(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.allowlist.write_text("policies: {}\npods: {}\n")
    files.add(files.told(capsys, "10.244.0.5", "db.example.com")["add"])

    assert files.told(capsys, "10.244.0.5", "db.example.com")["verdict"] == "allowed"


def test_a_port_that_nobody_knows_is_called_a_guess(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert "443 is a guess" in files.told(capsys, "10.244.0.5", "elsewhere.test")["add"]["remark"]


@pytest.mark.parametrize("pod", ["10.244.0.6", "10.244.0.8"])
def test_what_is_added_to_names_without_ports_is_said_to_open_every_port(
    pod: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.told(capsys, pod, "elsewhere.test")["add"]["remark"] == SHORT


def test_a_pod_that_is_new_gets_a_policy_with_ports_from_the_end_of_the_file(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    line = BLOCK.splitlines().index("pods:") + 2
    assert main(["explain", "10.244.0.77", "elsewhere.test", "--config", str(files.config), "--offline"]) == 3

    assert capsys.readouterr().out.endswith(
        f"to allow it, insert before {files.allowlist}:{line} (443 is a guess: write the ports that the pod uses)\n"
        "  10.244.0.77: {policies: [pod-10.244.0.77]}\n"
        f"\nand before {files.allowlist}:4\n"
        "  pod-10.244.0.77:\n"
        "    egress:\n"
        "      - {to: [{domainNames: [elsewhere.test]}], ports: [{protocol: TCP, port: 443}]}\n"
    )


@pytest.mark.parametrize("text", [EMPTY, "pods: {10.244.0.5: {name: shop/b}, 10.244.0.6: {policies: []}}\n"])
def test_an_entry_that_has_no_list_of_policies_gets_no_line(
    text: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.allowlist.write_text(text)

    assert files.told(capsys, "10.244.0.5", "new.test")["add"] is None


def denied(files: Files, *names: str, used: Mapping[Name, Ports] | None = None) -> Case:
    """A pod that the allowlist does not know, and that asked for these."""
    recent = Recent(lambda: 0.0)
    for name in names:
        recent.note(EventKind.QUERY_DENIED, {"pod": "a", "name": parse_name(name), "type": "A", "reason": "r"})
    policy, source = effective((), Action.DENY), Address(bytes([10, 244, 0, 77]))
    subject = Subject("a", policy, compile_program(policy), source, used=used or {}, live=True)
    return Case(subject, [source], files.allowlist, past=recent.of("a"))


def test_of_a_pods_denials_one_alone_says_how_the_pod_is_begun(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, earlier = denial_rows(denied(files, "first.test", "second.test"))

    assert newest["add"] is not None and "remark" not in newest
    assert (earlier["add"], earlier["remark"]) == (None, LATER)
    files.add(newest["add"])
    assert files.told(capsys, "10.244.0.77", "second.test")["verdict"] == "allowed"
    files.add(files.told(capsys, "10.244.0.77", "first.test")["add"])
    assert files.told(capsys, "10.244.0.77", "first.test")["verdict"] == "allowed"


def test_ports_that_the_pod_used_are_better_than_any_guess(files: Files) -> None:
    used = {parse_name("first.test"): (PortRange(Protocol.TCP, 8080, 8080),)}

    (row,) = denial_rows(denied(files, "first.test", used=used))

    assert row["add"] is not None and "ports: [{protocol: TCP, port: 8080}]" in row["add"]["also"]["text"]
    assert row["add"]["remark"] == "the ports are those that the pod used"


@pytest.mark.parametrize(
    ("kind", "reason", "said"),
    [
        (
            EventKind.ANSWER_WITHHELD,
            "protected address ::1",
            ", but an answer was withheld, or a part of it, 7 s ago (protected address ::1; see answers.protected)",
        ),
        (
            EventKind.ANSWER_AUDITED,
            "the kernel is full",
            ", but Enforce would have withheld an answer, or a part of it, 7 s ago (the kernel is full)",
        ),
    ],
)
def test_an_allowed_name_whose_answer_was_withheld_says_so(
    kind: EventKind, reason: str, said: str, files: Files
) -> None:
    recent = Recent(lambda: 3.0)
    for name in ("x.test", "other.test"):
        recent.note(kind, {"pod": "a", "name": parse_name(name), "type": "A", "reason": reason})
    policy = effective((Policy("all", (Rule((DomainPeer((parse_pattern("*"),)),)),)),), Action.DENY)
    subject = Subject("a", policy, compile_program(policy), Address(bytes(4)), live=True)
    case = Case(subject, [subject.source], files.allowlist, past=recent.of("a"), now=10.0)

    assert explain_all(case, {"name": "x.test"})["reason"] == f"its addresses open on any port{said}"
    assert explain_all(case, {"name": "y.test"})["reason"] == "its addresses open on any port"


def test_the_short_form_of_a_pod_cannot_express_an_address_and_the_rule_is_told_instead(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "10.244.0.6", "203.0.113.9", "443", "--config", str(files.config), "--offline"]) == 3

    out = capsys.readouterr().out
    rule = "{to: [{ipBlock: {cidr: 203.0.113.9/32}}], ports: [{protocol: TCP, port: 443}]}"
    assert "insert before" not in out
    assert out.endswith(
        f"\nto allow it: what the file has of the pod cannot be added to; give the pod a policy with {rule}\n"
    )


@pytest.mark.parametrize("entry", ["  10.244.0.77: [x.test]\n", "  '10.244.0.77':\n    policies: []\n"])
def test_a_pod_that_the_file_has_come_to_know_is_not_begun_again(entry: str, files: Files) -> None:
    files.allowlist.write_text(BLOCK + entry)

    (row,) = denial_rows(denied(files, "first.test"))

    assert row["add"] is None and "give the pod a policy with {to: [{domainNames: [first.test]}]" in row["remark"]


def test_people_see_the_nearest_rule_and_the_line_with_its_place(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["explain", "10.244.0.5", "dx.example.com", "--config", str(files.config), "--offline"])
    out = capsys.readouterr().out

    assert code == 3
    assert f"to allow it, insert before {files.allowlist}:6 (" in out
    assert "\n      - {to: [{domainNames: [dx.example.com]}]" in out


def test_without_a_daemon_there_is_no_past(files: Files) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dnsguard", "explain", "10.244.0.5", "--config", str(files.config)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert "the daemon is not running" in done.stderr
