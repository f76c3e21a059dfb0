"""The kinds of value that config.yaml has, each read from its text with what to write instead when it is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictInt,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from dnsguard.config.durations import FORM, duration_text, parse_duration
from dnsguard.config.networks import Endpoint, IpAddress, parse_address, parse_cidr, parse_endpoint
from dnsguard.config.positions import Ambiguous
from dnsguard.core.model import Network


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be text")
    return value


def wrong(text: str, key: str | None = None, other: str | None = None) -> PydanticCustomError:
    """For a check of a whole group: `key` is where the wrong value stands, `other` what else the check looked at."""
    return PydanticCustomError("dnsguard", "{text}", {"text": text, "key": key, "other": other})


def _reader(parse: Any) -> Any:
    """A validator that hands the text to `parse` and takes the words of its ValueError."""

    def read(value: object) -> object:
        text = _text(value)
        try:
            return parse(text)
        except ValueError as error:
            raise wrong(str(error)) from None

    return read


def _duration(value: object) -> object:
    if isinstance(value, Ambiguous):
        value = value.text.lstrip("0") or "00"
    elif type(value) in (int, float):
        value = str(value)
    return _reader(parse_duration)(value)


def _interface(text: str) -> str:
    stem = text.removesuffix("*")
    if not stem:
        raise ValueError(f"'{text}' would govern every link of the node; write how pod links begin, like veth*")
    if text in ("lo", "l*", "lo*"):
        raise ValueError(f"'{text}' would govern the node's own loopback; write how pod links begin, like veth*")
    if "*" in stem or set(stem) & set("?[]"):
        raise ValueError(f"'{text}' may have one *, at its end; list several patterns instead")
    if len(stem.encode()) > 15 or not stem.isprintable() or set(stem) & set(" /:") or stem in (".", ".."):
        raise ValueError(f"'{text}' cannot name a link; names have at most 15 letters, without space, / or :")
    return text


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise ValueError(f"'{text}' is not an absolute path; write it from /")
    return path


_ZONE = re.compile(r"%[^\]]*")


def _upstream(text: str) -> Endpoint:
    without_zone = parse_endpoint(_ZONE.sub("", text), 53).address
    if without_zone.version == 6 and without_zone.is_link_local:
        raise ValueError(f"{without_zone} is of one link alone; write an address of the resolver that is routed")
    endpoint = parse_endpoint(text, 53)
    if endpoint.address.is_unspecified or endpoint.address.is_multicast:
        raise ValueError(f"{endpoint.address} cannot be asked; write the address of a resolver")
    return endpoint


def _protected(text: str) -> Literal["default"] | Network:
    if text == "default":
        return "default"
    if "/" not in text and text.lower() == "default":
        raise ValueError("write default in lower case")
    return parse_cidr(text)


def _protected_item(value: object) -> object:
    return _reader(_protected)(value)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise PydanticCustomError(
                "dnsguard", "{text}", {"text": f"{value} is listed twice; keep one", "key": place}
            )
    return values


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise wrong("the list is empty; write at least one")
    return distinct(values)


def _any_or_list(value: object, read: ValidatorFunctionWrapHandler) -> object:
    if value == "Any":
        return ()
    if value == []:
        raise wrong("an empty list would intercept nothing; write Any, or list the addresses of the resolvers")
    if not isinstance(value, list):
        raise wrong("must be Any or a list of addresses")
    return read(value)


def _listen(value: object) -> Endpoint | None:
    if type(value) is int:
        raise wrong(f"{value} has no address; write 127.0.0.1:{value}")
    return None if value is None else _reader(lambda text: parse_endpoint(text, None))(value)


def _schema(**schema: Any) -> WithJsonSchema:
    return WithJsonSchema(schema)


_AS_TEXT = PlainSerializer(str, return_type=str)
"""Settings dump to what would be written in the file."""


def _intercepted_text(values: tuple[IpAddress, ...]) -> str | list[str]:
    return [str(value) for value in values] or "Any"


def _listen_text(endpoint: Endpoint | None) -> str | None:
    return None if endpoint is None else str(endpoint)


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(duration_text, return_type=str),
    _schema(anyOf=[{"type": "string", "minLength": 1, "pattern": FORM}, {"const": 0}]),
]
PathText = Annotated[Path, PlainValidator(_reader(_absolute)), _AS_TEXT, _schema(type="string", pattern="^/")]
InterfacePattern = Annotated[
    str, PlainValidator(_reader(_interface)), _schema(type="string", pattern=r"^[^*?\[\] /:]{1,15}\*?$")
]
AddressText = Annotated[IpAddress, PlainValidator(_reader(parse_address)), _AS_TEXT, _schema(type="string")]
UpstreamText = Annotated[Endpoint, PlainValidator(_reader(_upstream)), _AS_TEXT, _schema(type="string")]
ProtectedText = Annotated[
    Literal["default"] | Network,
    PlainValidator(_protected_item),
    _AS_TEXT,
    _schema(type="string", examples=["default", "10.0.0.0/8"]),
]
ListenText = Annotated[
    Endpoint | None,
    PlainValidator(_listen),
    PlainSerializer(_listen_text, return_type=str | None),
    _schema(type=["string", "null"]),
]
Mark = Annotated[StrictInt, Field(ge=1, le=0xFFFFFFFF)]
Intercepted = Annotated[
    tuple[AddressText, ...],
    WrapValidator(_any_or_list),
    PlainSerializer(_intercepted_text),
    _schema(anyOf=[{"const": "Any"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]),
]
Interfaces = Annotated[tuple[InterfacePattern, ...], Field(json_schema_extra={"minItems": 1}), AfterValidator(_some)]
Addresses = Annotated[tuple[AddressText, ...], AfterValidator(distinct)]
Upstreams = Annotated[tuple[UpstreamText, ...], Field(json_schema_extra={"minItems": 1}), AfterValidator(_some)]
ProtectedEntries = Annotated[tuple[ProtectedText, ...], AfterValidator(distinct)]
