"""The JSON Schemas of both files, for editors. That of config.yaml is made from the model; that of allowlist.yaml is
written here, beside the limits that its reader keeps.

A schema says what shape a value has; `dnsguard check` says whether it is right.
"""

from __future__ import annotations

from typing import Any

from dnsguard.config.groups import Settings

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def settings_schema() -> Schema:
    """The schema of config.yaml."""
    schema: Schema = _tidy(Settings.model_json_schema())
    return {"$schema": _DIALECT} | schema | {"title": "dnsguard configuration"}


def _tidy(schema: Any) -> Any:
    """Without what only repeats: titles, and the defaults of groups. Descriptions on one line."""
    if isinstance(schema, list):
        return [_tidy(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _tidy(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if "$ref" in kept and isinstance(kept.get("default"), dict):
        del kept["default"]
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return kept


def allowlist_schema() -> Schema:
    """The schema of allowlist.yaml."""
    return {
        "$schema": _DIALECT,
        "title": "dnsguard allowlist",
        "description": "What each pod may resolve and reach.",
        **_closed(
            {
                "apiVersion": {"const": "dnsguard/v1", "description": "The version of this format."},
                "kind": {"const": "Allowlist", "description": "Tells this file from a configuration."},
                "policies": _map("Named lists of rules, for pods to refer to.", {"$ref": "#/$defs/Policy"}),
                "pods": _map("What each pod may do, by its address or CIDR; the longest prefix wins.", _POD),
            }
        ),
        "$defs": _DEFINITIONS,
    }


def _closed(properties: Schema, *required: str, description: str | None = None) -> Schema:
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    if required:
        schema["required"] = list(required)
    return schema if description is None else {"description": description} | schema


def _map(description: str, values: Schema) -> Schema:
    return {"type": "object", "description": description, "additionalProperties": values}


def _list(description: str, items: Schema, least: int = 1) -> Schema:
    return {"type": "array", "description": description, "minItems": least, "items": items}


_NAME = {"$ref": "#/$defs/Name"}
_CIDR = {"$ref": "#/$defs/Cidr"}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}

_POD: Schema = {
    "anyOf": [
        _list("Shorthand: these names, every port.", _NAME, least=0),
        _closed(
            {
                "name": {"type": "string", "description": "The pod's name in logs. Addresses of one name are one pod."},
                "policies": _list("Names of policies.", {"type": "string"}, least=0),
            },
        ),
    ]
}

_DEFINITIONS: Schema = {
    "Policy": _closed(
        {
            "dns": {
                "enum": ["Filter", "PassThrough"],
                "default": "Filter",
                "description": "`Filter`: only allowed names resolve. `PassThrough`: all names resolve, only allowed "
                "names open anything. One `PassThrough` among a pod's policies decides.",
            },
            "egress": _list("Rules; what none of them allows is closed.", {"$ref": "#/$defs/Rule"}, least=0),
        },
        "egress",
    ),
    "Rule": _closed(
        {
            "to": _list("Peers, each of one kind.", {"anyOf": [{"$ref": "#/$defs/Names"}, {"$ref": "#/$defs/Block"}]}),
            "ports": _list("Ports; without this key every port of every protocol.", {"$ref": "#/$defs/Port"}),
        },
        "to",
    ),
    "Names": _closed(
        {
            "domainNames": _list("Names that may be resolved, and whose addresses may be reached.", _NAME),
            "except": _list("Names that the ones beside it do not mean.", _NAME),
        },
        "domainNames",
    ),
    "Block": _closed(
        {
            "ipBlock": _closed(
                {"cidr": _CIDR, "except": _list("Parts of the block that are not meant.", _CIDR, least=0)}, "cidr"
            )
        },
        "ipBlock",
    ),
    "Port": _closed(
        {
            "protocol": {"enum": ["TCP", "UDP", "SCTP"], "default": "TCP", "description": "The protocol."},
            "port": _PORT
            | {"description": "The port, or the first of a range; without it every port of the protocol."},
            "endPort": _PORT | {"description": "The last port of the range."},
        }
    )
    | {"minProperties": 1, "dependentRequired": {"endPort": ["port"]}},
    "Name": {
        "type": "string",
        "description": "`a.b`; or `*.a.b` for one or more labels under a.b, not a.b itself. Quote what begins with *.",
        "pattern": r"^(\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?)$",
        "maxLength": 256,
    },
    "Cidr": {"type": "string", "description": "A network, like 10.0.0.0/16.", "pattern": "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"},
}
