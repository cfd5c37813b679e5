"""Loading a sandbox: a folder with one `*.cedarschema` and any number of `*.cedar` policy files.

The project ships one in `shipped/`; Platform Security's own may stand in for it by a path. A sandbox that loads is valid: the
schema parses, every policy validates against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cedarpy

from akidb_pipelines.cedar.model import Model, build_model, without_docs
from akidb_pipelines.cedar.parse import Json, schema_json
from akidb_pipelines.errors import InputError

SHIPPED = Path(__file__).parent / "shipped"
PRODUCT = "AkiDB"
OPS = "AkiDB::Ops"
EVERYWHERE = ""
"""Namespace of a policy that holds in both."""


@dataclass(frozen=True)
class Policy:
    """One policy in Cedar's JSON form, under the name of its `@id`."""

    id: str
    namespace: str
    json: Json
    is_template: bool = False

    @property
    def meaning(self) -> Json:
        """The policy without its documentation."""
        bare: Json = without_docs(self.json)
        return bare

    def mentions(self, *, entity: str = "", uid: tuple[str, str] | None = None, attribute: str = "") -> bool:
        """Whether the policy names an entity type, one entity (type, id), or reads an attribute."""
        for node in _dicts(self.json):
            if entity and (node.get("entity_type") == entity or node.get("type") == entity):
                return True
            if uid and (node.get("type"), node.get("id")) == uid:
                return True
            if attribute and node.get("attr") == attribute:
                return True
        return False


def _dicts(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dicts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _dicts(inner)


@dataclass(frozen=True)
class Sandbox:
    """A validated schema with its policies."""

    source: str
    """Where it was read from, for messages."""
    schema_text: str
    model: Model
    policies: tuple[Policy, ...]

    @cached_property
    def schema(self) -> cedarpy.Schema:
        """Cedar's parsed handle."""
        return cedarpy.Schema.from_str(self.schema_text)

    def policies_of(self, namespace: str) -> tuple[Policy, ...]:
        """The policies about one namespace, by id."""
        return tuple(p for p in self.policies if p.namespace in {namespace, EVERYWHERE})

    def policy_set(self, namespace: str) -> cedarpy.PolicySet:
        """Cedar's parsed handle of one namespace's policies; decisions name policies by their `@id`."""
        return policy_set(self.policies_of(namespace))

    def sha256(self, namespace: str) -> str:
        """Digest of one namespace and its policies: a change of the other one leaves it as it is."""
        meaning = {p.id: p.meaning for p in self.policies_of(namespace)}
        return self.model.namespace(namespace).sha256(json.dumps(meaning, sort_keys=True))


def policy_set(policies: tuple[Policy, ...]) -> cedarpy.PolicySet:
    """Cedar's handle of some policies, each under its own id."""
    return cedarpy.PolicySet.from_json_str(
        json.dumps(
            {
                "staticPolicies": {p.id: p.json for p in policies if not p.is_template},
                "templates": {p.id: p.json for p in policies if p.is_template},
                "templateLinks": [],
            }
        )
    )


def load_sandbox(folder: Path | None = None) -> Sandbox:
    """Read and validate the sandbox in `folder`, or the one that ships with the project.

    Raises:
        InputError: the folder, the schema or a policy is missing, unreadable or invalid; the message names file and policy.
    """
    folder = folder or SHIPPED
    schemas = sorted(folder.glob("*.cedarschema")) if folder.is_dir() else []
    if len(schemas) != 1:
        found = f"{len(schemas)} files *.cedarschema" if folder.is_dir() else "no such folder"
        raise InputError(
            f"Cedar sandbox {folder}: {found}",
            hint="AKIDB_CEDAR_SANDBOX must name a folder with one *.cedarschema and its *.cedar policies",
        )
    text = _read(schemas[0])
    model = build_model(schema_json(text, str(schemas[0])))
    policies: list[Policy] = []
    for path in sorted(folder.glob("*.cedar")):
        policies += _policies(path, text)
    if not policies:
        raise InputError(f"Cedar sandbox {folder}: no *.cedar policies", hint="a schema alone decides nothing")
    seen: set[str] = set()
    for policy in policies:
        if policy.id in seen:
            raise InputError(f'Cedar sandbox {folder}: two policies are called @id("{policy.id}")', hint="rename one")
        seen.add(policy.id)
    return Sandbox(str(folder), text, model, tuple(sorted(policies, key=lambda p: p.id)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="check the file and its permissions") from error


def _policies(path: Path, schema_text: str) -> list[Policy]:
    text = _read(path)
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise InputError(f"{path}: Cedar cannot read the policies: {error}", hint="run `akidb-pipelines cedar check`") from error

    def named(number: str, policy: Json, *, is_template: bool) -> Policy:
        given = policy.get("annotations", {}).get("id")
        return Policy(given or f"{path.stem}:{number}", _namespace_of(policy), policy, is_template)

    names = {n: named(n, p, is_template=False) for n, p in parsed["staticPolicies"].items()}
    names |= {n: named(n, p, is_template=True) for n, p in parsed["templates"].items()}
    result = cedarpy.validate_policies(text, schema_text)
    if not result.validation_passed:
        told = [f'@id("{names[e.policy_id].id}"): {e.error}' if e.policy_id in names else str(e.error) for e in result.errors]
        raise InputError(
            f"{path}: {len(told)} policies do not validate against the schema\n    " + "\n    ".join(told[:20]),
            hint="correct the policy or the schema; nothing was changed",
        )
    for policy in names.values():
        _must_be_rebuilt(policy, path)
    return list(names.values())


def _must_be_rebuilt(policy: Policy, path: Path) -> None:
    """Decisions take the JSON form, and Cedar reads less deep a nesting of it than it writes: some fifty terms in a row are too many."""
    try:
        policy_set((policy,))
    except ValueError as error:
        raise InputError(
            f'{path}: @id("{policy.id}") is nested too deep for Cedar\'s JSON form',
            hint='write many `a == "x" || a == "y"` as `["x", "y"].contains(a)`',
        ) from error


def _namespace_of(policy: Json) -> str:
    """The namespace that a policy speaks of: Ops as soon as it names anything of it. A forbid that names nothing is meant everywhere."""
    named = [str(node[key]) for node in _dicts(policy) for key in ("entity_type", "type") if key in node]
    if any(name.startswith(f"{OPS}::") for name in named):
        return OPS
    return EVERYWHERE if policy.get("effect") == "forbid" and not any("::" in name for name in named) else PRODUCT
