"""Connection tracking that gets full and has room again is told of, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnsguard.engine.contracts import EventKind
from dnsguard.node.conntrack_room import ConntrackRoom
from dnsguard.observe.catalog import DEBUG
from dnsguard.observe.events import Event, EventLog
from dnsguard.observe.ratelimit import LineLimiter

FULL, ROOM = EventKind.CONNTRACK_FULL, EventKind.CONNTRACK_HAS_ROOM


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([0, 500, 979], []),
        ([980, 1000, 985, 950], [FULL]),
        ([1000, 899, 0], [FULL, ROOM]),
        ([1000, 0, 1000], [FULL, ROOM, FULL]),
    ],
)
async def test_full_and_room_again_are_told_once_each(tmp_path: Path, counts: list[int], told: list[EventKind]) -> None:
    events: list[Event] = []
    room = ConntrackRoom(EventLog([events.append], LineLimiter(1), lambda: 0.0, level=DEBUG), tmp_path)
    (tmp_path / "nf_conntrack_max").write_text("1000\n")

    for count in counts:
        (tmp_path / "nf_conntrack_count").write_text(f"{count}\n")
        await room.look()

    assert [event.kind for event in events] == told
    assert all(event.fields["limit"] == 1000 for event in events)


async def test_a_node_without_connection_tracking_is_not_full(tmp_path: Path) -> None:
    events: list[Event] = []
    await ConntrackRoom(EventLog([events.append], LineLimiter(1), lambda: 0.0, level=DEBUG), tmp_path).look()

    assert events == []
