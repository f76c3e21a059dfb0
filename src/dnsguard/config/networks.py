"""IP addresses, CIDRs and endpoints as people write them in files, with what to write instead when they are wrong.

Every function takes the text of a value and raises ValueError whose text is fit for a diagnostic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from dnsguard.core.model import Network

IpAddress = IPv4Address | IPv6Address

_MAPPED = IPv6Network("::ffff:0:0/96")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:%]*[.:][0-9A-Za-z.:%]*\Z")
_ENDPOINT = re.compile(r"(?:\[(?P<six>[^\]\[]*)\]|(?P<four>[^:\[\]]*))(?::(?P<port>.*))?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port, over UDP or TCP."""

    address: IpAddress
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.address.version == 4 else f"[{self.address}]:{self.port}"


def parse_address(text: str) -> IpAddress:
    """An IPv4 or IPv6 address. A zone (`%eth0`) and an IPv4-mapped address are refused."""
    if "/" in text:
        raise ValueError(f"'{text}' is a network; write one address here")
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"'{text}' is not an IP address{_leading_zeros(text)}") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"'{text}' has a zone; leave out %{address.scope_id}")
        if address.ipv4_mapped is not None:
            raise ValueError(f"'{text}' is an IPv4 address in IPv6's clothes; write {address.ipv4_mapped}")
    return address


def _leading_zeros(text: str) -> str:
    text = text.partition("/")[0]
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
        return ""
    better = ".".join(str(int(part[:9])) for part in parts)
    return f"; write {better}" if better != text and all(int(part[:9]) < 256 for part in parts) else ""


def parse_cidr(text: str) -> Network:
    """A network in CIDR notation, host bits clear."""
    address, slash, length = text.partition("/")
    if not slash:
        only = parse_address(text)
        raise ValueError(f"'{text}' is an address; write {only}/{only.max_prefixlen}")
    if not _ADDRESS.match(address):
        raise ValueError(f"'{text}' is neither an IP address nor a CIDR")
    if not (length.isascii() and length.isdigit()):
        raise ValueError(f"'{text}' is not a CIDR; write the prefix length after the slash: {_example(address)}")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"'{text}' is not a CIDR{_leading_zeros(text)}; write it like {_example(address)}") from None
    return _checked(text, network, address)


def _example(address: str) -> str:
    return "fd00:10::/64" if ":" in address else "10.0.0.0/16"


def _checked(text: str, network: Network, address: str) -> Network:
    if "%" in address:
        raise ValueError(f"'{text}' has a zone; leave it out")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        raise ValueError(f"'{text}' is an IPv4 network in IPv6's clothes; write {mapped}/{network.prefixlen - 96}")
    if ip_address(address) != network.network_address:
        raise ValueError(f"'{text}' has bits set after its prefix; write {network}")
    return network


def parse_network(text: str) -> Network:
    """An address (a network of one) or a CIDR."""
    return parse_cidr(text) if "/" in text else ip_network(parse_address(text))


def parse_endpoint(text: str, default_port: int | None) -> Endpoint:
    """`10.0.0.1`, `10.0.0.1:5353`, `fd00::1`, `[fd00::1]:53`; without a default the port must be written."""
    found = _ENDPOINT.match(text)
    if found is None or (text.count(":") > 1 and not text.startswith("[")):
        address, port = text, None
    else:
        address, port = found["six"] if found["six"] is not None else found["four"], found["port"]
    if not address:
        raise ValueError(f"'{text}' has no address; write one before the port, like 127.0.0.1:{port or 53}")
    return Endpoint(parse_address(address), _port(text, port, default_port))


def _port(text: str, port: str | None, default: int | None) -> int:
    if port is None and default is not None:
        return default
    if port is None:
        raise ValueError(f"'{text}' has no port; write address:port, or [address]:port for IPv6")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"'{port}' is not a port; write a number from 1 to 65535")
    return int(port)
