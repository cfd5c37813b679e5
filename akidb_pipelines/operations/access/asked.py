"""What a request asks of GraphQL: one document, short enough to be looked at."""

from __future__ import annotations

import json
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    ValidationContext,
    ValidationRule,
    parse,
    validate,
)
from starlette.requests import Request

MESSAGE_BYTES = 1 << 20
"""Largest request that is read; the UI's are some kB."""
_QUERY_LENGTH = 1 << 16
"""Longest document: checking the worst of this length takes a second. The UI's largest has some 20 kB."""


class UnservedError(Exception):
    """A request of the wrong kind."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class FewChanges(ValidationRule):
    """A document changes a few things at most: each is decided, and written down, by itself. The UI changes one."""

    _MOST = 20

    def __init__(self, context: ValidationContext) -> None:
        super().__init__(context)
        self._count = 0

    def enter_field(self, node: FieldNode, *_: object) -> None:
        """Called for each field of the document, those of fragments included."""
        if self.context.get_parent_type() is self.context.schema.mutation_type:
            self._count += 1
            if self._count == self._MOST + 1:
                self.report_error(GraphQLError(f"more than {self._MOST} changes are asked for in one document", node))


async def asked(request: Request) -> tuple[str, dict[str, Any], str | None]:
    """Document, variables and the name of the operation, of one JSON object by POST.

    Raises:
        UnservedError: it is something else.
    """
    if request.method != "POST":
        raise UnservedError(405, "GraphQL is served by POST only")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnservedError(415, "GraphQL is served as application/json only")
    sent = parsed(await body_of(request))
    match sent:
        case {"query": str(query)}:
            variables, operation = sent.get("variables") or {}, sent.get("operationName")
            if isinstance(variables, dict) and isinstance(operation, str | None):
                return _short(query), variables, operation
    raise UnservedError(400, "one JSON object with one query is served, no batches")


async def body_of(request: Request) -> bytes:
    """All of it.

    Raises:
        UnservedError: it is too large.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MESSAGE_BYTES:
            raise UnservedError(413, f"requests of at most {MESSAGE_BYTES} bytes are served")
    return bytes(body)


def parsed(body: bytes) -> Any:
    """Of JSON.

    Raises:
        UnservedError: it is something else.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise UnservedError(400, "the request is no JSON") from None


def _short(query: object) -> str:
    if not isinstance(query, str) or len(query) > _QUERY_LENGTH:
        raise UnservedError(413, f"GraphQL documents of at most {_QUERY_LENGTH} characters are served")
    return query


def subscription(query: object, schema: GraphQLSchema) -> DocumentNode:
    """The document of what is to be told over a WebSocket.

    Raises:
        UnservedError: it asks for something else.
        GraphQLError: it is wrong.
    """
    document = parse(_short(query))
    operations = [d.operation for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    if any(operation is not OperationType.SUBSCRIPTION for operation in operations):
        raise UnservedError(400, "only subscriptions are served over WebSocket")
    if errors := validate(schema, document):
        raise errors[0]
    return document
