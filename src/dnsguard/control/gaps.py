"""Where a line that is asked for does not decide, in words: for `status`, and for the look at the node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from dnsguard.control.calls import Status
from dnsguard.core.words import some

NAMED: Final = 6
"""So many links with the same reason are named."""


def gap_texts(status: Status) -> Iterator[str]:
    """One for each line that is absent, else one for all links with the same reason."""
    absent = status["absent"]
    for enforcer, why in absent.items():
        # behind the first line stands the verifier's log
        yield f"{enforcer} is asked for and decides on no link: {why.partition(chr(10))[0]}"
    alike: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for gap in status["gaps"]:
        if gap["enforcer"] not in absent:
            alike[gap["enforcer"], gap["reason"]].append(gap["link"])
    for (enforcer, reason), links in alike.items():
        yield f"{enforcer} does not decide on {some(links, NAMED)}: {reason}"
