"""Which domains belong to many owners, so that a wildcard under one of them would allow strangers.

A rule and a short list, not the public suffix list: what is missing here costs an operator a look at one wildcard,
which `learn` writes with the number of names it stands for.
"""

from __future__ import annotations

from typing import Final

from dnsguard.core.model import Name
from dnsguard.core.names import parse_name

_REGISTRIES: Final = frozenset(
    f"{len(label):c}{label}".encode()
    for label in (
        *("ac", "asso", "biz", "co", "com", "edu", "firm", "gob", "gouv", "gov", "govt", "gv", "id", "in", "info"),
        *("int", "k12", "ltd", "me", "mil", "ne", "net", "nhs", "nic", "nom", "or", "org", "plc", "police", "sch"),
        "web",
        *("ad", "ed", "go", "gr", "lg", "tm"),
    )
)
"""Second labels under which the registries of countries sell names: `co.uk`, `com.au`, `ne.jp`."""

SHARED: Final = frozenset(
    map(
        parse_name,
        (
            *("amazonaws.com", "s3.amazonaws.com", "cloudfront.net", "elb.amazonaws.com", "awsapprunner.com"),
            *("azurewebsites.net", "azureedge.net", "cloudapp.net", "core.windows.net", "blob.core.windows.net"),
            *("file.core.windows.net", "queue.core.windows.net", "table.core.windows.net", "trafficmanager.net"),
            *("appspot.com", "web.app", "firebaseapp.com", "firebaseio.com", "run.app", "cloudfunctions.net"),
            *("storage.googleapis.com", "github.io", "gitlab.io", "herokuapp.com", "netlify.app", "vercel.app"),
            *("pages.dev", "workers.dev", "r2.dev", "fly.dev", "onrender.com", "ngrok.io", "ngrok-free.app"),
            *("duckdns.org", "dyndns.org", "no-ip.org", "blogspot.com", "wordpress.com", "digitaloceanspaces.com"),
            *("fastly.net", "akamaiedge.net", "akamaized.net", "edgekey.net", "b-cdn.net", "supabase.co"),
        ),
    )
)
"""Domains whose children anyone can have."""


def is_shared(domain: Name) -> bool:
    """True for the root, a top-level domain, what registries sell names under, and the hosters of the list."""
    at = labels = last = before = 0
    while domain[at]:
        before, last = last, at
        at += 1 + domain[at]
        labels += 1
    if labels < 2 or domain in SHARED:
        return True
    return labels == 2 and domain[last] == 2 and domain[before:last] in _REGISTRIES
