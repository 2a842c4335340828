"""CustomResourceDefinitions as strict JSON Schemas: a field that they do not know is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator


@cache
def validators(folder: Path) -> Mapping[tuple[str, str], Draft202012Validator]:
    """Return a validator for each (apiVersion, kind) that the definitions in ``folder`` serve."""
    made: dict[tuple[str, str], Draft202012Validator] = {}
    for path in sorted(folder.glob("*.yaml")):
        for definition in yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
            if not definition:
                continue
            spec = definition["spec"]
            for version in spec["versions"]:
                if version["served"]:
                    key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    made[key] = Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]) | _ENVELOPE)
    return made


#: The API server's own part of every resource.
_ENVELOPE = {"required": ["apiVersion", "kind", "metadata", "spec"]}


def strict(schema: Mapping[str, Any], *, top: bool = True) -> dict[str, Any]:
    """Return a structural schema of Kubernetes as a JSON Schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    out = {k: v for k, v in schema.items() if not k.startswith("x-") and k not in ("description", "nullable", "format")}
    if isinstance(properties := schema.get("properties"), Mapping):
        out["properties"] = {name: strict(inner, top=False) for name, inner in properties.items()}
        if top:
            out["properties"]["metadata"] = {"type": "object"}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    for name in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(name), Mapping):
            out[name] = strict(inner, top=False)
    # Alternatives only add conditions to what stands beside them; strictness there would refuse each other's fields.
    if schema.get("nullable") and isinstance(kind := schema.get("type"), str):
        out["type"] = [kind, "null"]
    return out


def problems(validator: Draft202012Validator, resource: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words where ``resource`` does not fit."""
    for error in validator.iter_errors(resource):
        yield f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message[:200]}"
