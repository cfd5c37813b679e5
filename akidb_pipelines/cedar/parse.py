"""Cedar's canonical schema text to Cedar's JSON schema, which cedarpy itself does not offer.

Grammar: https://docs.cedarpolicy.com/schema/human-readable-schema-grammar.html, as far as Cedar's own printer uses it (sorted, one
annotation a line, no comments). The parser need not be trusted: `schema_json` gives its result back to Cedar and compares the
canonical texts, so a construct that it gets wrong is an error here and never a wrong model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import cedarpy

from akidb_pipelines.errors import InputError

Json = dict[str, Any]

_TOKEN = re.compile(r'\s+|(?P<string>"(?:[^"\\]|\\.)*")|(?P<name>[A-Za-z_]\w*)|(?P<sign>::|[@(){}\[\]<>=,;:?])')
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]{1,6})\}|(.))")
_PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}


def canonical(text: str, source: str) -> str:
    """Cedar's own printing of a schema: sorted, comments gone, annotations kept.

    Raises:
        InputError: Cedar cannot read it; the message is Cedar's.
    """
    try:
        return str(cedarpy.Schema.from_str(text))
    except ValueError as error:
        raise InputError(
            f"{source}: Cedar cannot read the schema: {error}", hint="run `akidb-pipelines cedar check` while editing it"
        ) from error


def schema_json(text: str, source: str) -> Json:
    """The JSON form of a schema, verified by Cedar.

    Raises:
        InputError: Cedar cannot read the text, or reads our JSON differently.
    """
    printed = canonical(text, source)
    parsed = _Parser(printed).schema()
    back = str(cedarpy.Schema.from_json_str(json.dumps(parsed)))
    if back != printed:
        line = next((a for a, b in zip(printed.splitlines(), back.splitlines(), strict=False) if a != b), "")
        raise InputError(
            f"{source}: the schema uses a construct that this project does not read, near: {line.strip()}",
            hint="simplify it, or extend akidb_pipelines/cedar/parse.py",
        )
    return parsed


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise InputError(f"unexpected character in Cedar's canonical text: {text[at : at + 20]!r}")
        if match.lastgroup:
            yield match.lastgroup, match.group(match.lastgroup)
        at = match.end()
    yield "end", ""


def _unquote(token: str) -> str:
    """A Rust string literal, as Cedar prints it."""
    return _ESCAPE.sub(
        lambda m: chr(int(m[1], 16)) if m[1] else _PLAIN_ESCAPES.get(m[2], m[2]),
        token[1:-1],
    )


class _Parser:
    """Recursive descent, one method a production."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    # --- tokens

    def _next(self) -> tuple[str, str]:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _sees(self, sign: str) -> bool:
        kind, text = self._tokens[self._at]
        return kind != "string" and text == sign

    def _takes(self, sign: str) -> bool:
        if self._sees(sign):
            self._at += 1
            return True
        return False

    def _need(self, sign: str) -> None:
        if not self._takes(sign):
            raise InputError(f"Cedar's canonical text: expected {sign!r}, found {self._tokens[self._at][1]!r}")

    def _name(self) -> str:
        kind, text = self._next()
        return _unquote(text) if kind == "string" else text

    def _list(self, item: Any, end: str) -> list[Any]:
        items = []
        while not self._takes(end):
            items.append(item())
            if not self._takes(","):
                self._need(end)
                break
        return items

    def _path(self) -> str:
        path = self._next()[1]
        while self._takes("::"):
            path += "::" + self._next()[1]
        return path

    # --- productions

    def schema(self) -> Json:
        namespaces: Json = {}
        while self._tokens[self._at][0] != "end":
            start = self._at
            annotations = self._annotations()
            if self._takes("namespace"):
                name = self._path()
                self._need("{")
                namespaces[name] = self._declarations("}", annotations)
                self._need("}")
            else:
                self._at = start
                namespaces[""] = self._declarations("namespace", {})
        return namespaces

    def _declarations(self, end: str, annotations: dict[str, str]) -> Json:
        space: Json = {"entityTypes": {}, "actions": {}}
        if annotations:
            space["annotations"] = annotations
        while not self._sees(end) and self._tokens[self._at][0] != "end":
            own = self._annotations()
            noted: Json = {"annotations": own} if own else {}
            keyword = self._next()[1]
            if keyword == "type":
                name = self._name()
                self._need("=")
                space.setdefault("commonTypes", {})[name] = {**self._type(), **noted}
            elif keyword == "entity":
                names = self._names()
                declared = self._entity()
                space["entityTypes"].update({name: {**declared, **noted} for name in names})
            elif keyword == "action":
                names = self._names()
                declared = self._action()
                space["actions"].update({name: {**declared, **noted} for name in names})
            else:
                raise InputError(f"Cedar's canonical text: unknown declaration {keyword!r}")
            self._need(";")
        return space

    def _names(self) -> list[str]:
        names = [self._name()]
        while self._takes(","):
            names.append(self._name())
        return names

    def _annotations(self) -> dict[str, str]:
        found = {}
        while self._takes("@"):
            name, value = self._name(), ""
            if self._takes("("):
                value = self._name()
                self._need(")")
            found[name] = value
        return found

    def _type(self) -> Json:
        if self._takes("{"):
            return {"type": "Record", "attributes": dict(self._list(self._attribute, "}"))}
        name = self._path()
        if name == "Set" and self._takes("<"):
            element = self._type()
            self._need(">")
            return {"type": "Set", "element": element}
        return {"type": "EntityOrCommon", "name": name}

    def _attribute(self) -> tuple[str, Json]:
        annotations = self._annotations()
        name = self._name()
        optional = self._takes("?")
        self._need(":")
        declared = self._type()
        if annotations:
            declared["annotations"] = annotations
        if optional:
            declared["required"] = False
        return name, declared

    def _entity(self) -> Json:
        if self._takes("enum"):
            self._need("[")
            return {"enum": self._list(self._name, "]")}
        declared: Json = {}
        if self._takes("in"):
            declared["memberOfTypes"] = self._list(self._path, "]") if self._takes("[") else [self._path()]
        self._takes("=")
        if self._sees("{"):
            declared["shape"] = self._type()
        if self._takes("tags"):
            declared["tags"] = self._type()
        return declared

    def _action(self) -> Json:
        declared: Json = {}
        if self._takes("in"):
            declared["memberOf"] = self._list(self._group, "]") if self._takes("[") else [self._group()]
        if self._takes("appliesTo"):
            self._need("{")
            applies: Json = {"principalTypes": [], "resourceTypes": []}
            while not self._takes("}"):
                key = self._name()
                self._need(":")
                if key == "context":
                    applies["context"] = self._type()
                else:
                    applies[f"{key}Types"] = self._list(self._path, "]") if self._takes("[") else [self._path()]
                self._takes(",")
            declared["appliesTo"] = applies
        return declared

    def _group(self) -> Json:
        """`Action::"name"`, with the namespace of the action before it when it is another one."""
        path: list[str] = []
        while True:
            kind, text = self._next()
            if kind == "string":
                return {"id": _unquote(text), "type": "::".join(path)} if path else {"id": _unquote(text)}
            path.append(text)
            if not self._takes("::"):
                return {"id": path[-1]}
