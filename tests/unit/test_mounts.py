"""Whether the bpffs that a service sees is still the node's, read from its table of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnsguard.enforce.bpf.mounts import follows

PINS = Path("/sys/fs/bpf/dnsguard")
ROOT = "1 0 0:1 / / rw,relatime shared:1 master:9 - ext4 /dev/x rw\n"
NODES = "228 225 0:79 / /sys/fs/bpf ro shared:37 master:91 - bpf bpf rw\n"
OWN = "256 228 0:79 /dnsguard /sys/fs/bpf/dnsguard rw shared:38 {}- bpf bpf rw\n"
UNMOUNTED = "228 140 0:79 / /sys/fs/bpf ro shared:37 - bpf bpf rw\n"
NEW = "140 225 0:58 / /sys/fs/bpf rw shared:91 master:52 - bpf bpf rw,mode=700\n"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (ROOT + NODES + OWN.format("master:91 "), True),
        (ROOT + UNMOUNTED + OWN.format(""), False),
        (ROOT + UNMOUNTED + OWN.format("") + NEW, False),
        (ROOT + NODES, True),
        ("228 225 0:79 / /sys/fs/bpf rw - bpf bpf rw\n", False),
        ("", False),
    ],
    ids=["a service's", "unmounted", "unmounted, and another beneath", "one mount", "no namespace of its own", "none"],
)
def test_what_the_innermost_mount_says_counts(tmp_path: Path, table: str, expected: bool) -> None:
    (tmp_path / "mountinfo").write_text(table)

    assert follows(PINS, tmp_path / "mountinfo") is expected
