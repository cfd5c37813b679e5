"""The webserver behind the front: nobody is served without a valid token, nothing is changed without Cedar's word.

    request -> Gate (token, view, same origin) -> Dagster's webserver (JSON only, guarded mutations) -> CedarRequestContext

Stock Dagster runs mutations over GET and from any origin, and leaves some mutations and its REST endpoints without a check. Here each of
its mutations is wrapped by a guard, by name; if Dagster grows one that nobody has given a right, the front does not start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from inspect import isawaitable
from typing import Any
from urllib.parse import urlsplit

from dagster import DagsterInstance
from dagster._core.workspace.permissions import Permissions
from dagster_webserver.webserver import DagsterWebserver
from graphene import Schema
from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from akidb_pipelines.errors import InputError, PipelineError
from akidb_pipelines.operations.access.context import SCOPE_KEY, CedarProcessContext, CedarRequestContext, Matter
from akidb_pipelines.operations.access.identity import Doorkeeper, Principal, RefusedTokenError
from akidb_pipelines.operations.access.pages import decisions_page
from akidb_pipelines.operations.access.rights import (
    ADMINISTER,
    AUDIT,
    MUTATIONS,
    OCI_DRILL,
    ON_DEPLOYMENT,
    VIEW,
    Right,
    claimed_tags,
    configurations,
    described,
    leaves_the_lab,
    parents,
)

_OPEN = frozenset({"/server_info"})
"""Version numbers, for health checks."""
_READ = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """Lets in who has a token, may look, and does not come from a foreign page. For HTTP and WebSocket alike.

    Args:
        app: what is behind it.
        doorkeeper: reads tokens.
        context: Cedar and the journal.
        origin: scheme and host that browsers see; empty takes each request's own Host header.
    """

    def __init__(self, app: ASGIApp, doorkeeper: Doorkeeper, context: CedarProcessContext, origin: str = "") -> None:
        self._app, self._doorkeeper, self._context, self._origin = app, doorkeeper, context, origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] not in {"http", "websocket"} or (scope["type"] == "http" and scope["path"] in _OPEN):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        changes = scope["type"] == "websocket" or scope["method"] not in _READ
        if changes and self._is_foreign(headers):
            await _turn_away(scope, receive, send, 403, "requests of other pages are not served")
            return
        try:
            principal = await run_in_threadpool(self._admit, headers, scope)
        except RefusedTokenError as error:
            await _turn_away(scope, receive, send, 401, error.message)
            return
        except PipelineError as error:
            await _turn_away(scope, receive, send, 403, error.message)
            return
        scope[SCOPE_KEY] = principal
        if scope["type"] == "http":
            await self._app(scope, receive, send)
            return
        try:
            # A connection that stays open must not outlive the token that opened it.
            async with asyncio.timeout(max(0, principal.expires - time.time())):
                await self._app(scope, receive, send)
        except TimeoutError:
            await send({"type": "websocket.close", "code": 4401, "reason": "the token has ended"})

    def _admit(self, headers: Headers, scope: Scope) -> Principal:
        client = scope.get("client")
        address = client[0] if client else ""
        try:
            principal = self._doorkeeper.admit(headers.getlist("authorization"))
        except RefusedTokenError as error:
            self._context.access.journal.refuse(error.message, scope["path"], address)
            raise
        decision = self._context.access.judge.decide(principal, VIEW)
        if not decision.allowed:
            self._context.access.record(principal, VIEW, decision, Matter(scope["path"][:200]), address)
            raise InputError(f"{principal.name} is in no team that may look (docs/access.md)")
        return principal

    def _is_foreign(self, headers: Headers) -> bool:
        if headers.get("sec-fetch-site") == "cross-site":
            return True
        origin = headers.get("origin")
        if origin is None:
            return False
        if self._origin:
            return origin.lower() != self._origin.lower().rstrip("/")
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


async def _turn_away(scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        message: Message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.close", "code": 4000 + status, "reason": why[:120]})
        return
    extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    await JSONResponse({"error": why}, status, extra)(scope, receive, send)


class GuardedWebserver(DagsterWebserver[CedarProcessContext, CedarRequestContext]):
    """Dagster's webserver, with guards.

    Args:
        process_context: makes the contexts that decide.
        doorkeeper: reads tokens.
        origin: scheme and host that browsers see.
    """

    def __init__(self, process_context: CedarProcessContext, doorkeeper: Doorkeeper, origin: str = "") -> None:
        self._doorkeeper, self._origin = doorkeeper, origin
        super().__init__(process_context)

    def build_middleware(self) -> list[Middleware]:
        """The gate comes first."""
        gate = Middleware(Gate, doorkeeper=self._doorkeeper, context=self._process_context, origin=self._origin)
        return [gate, *super().build_middleware()]

    def build_graphql_schema(self) -> Schema:
        """Every mutation behind its guard.

        Raises:
            InputError: Dagster knows a mutation or a permission that has no right here.
        """
        schema = super().build_graphql_schema()
        mutations = schema.graphql_schema.mutation_type.fields
        unknown = {*mutations} - {*MUTATIONS} | {p.value for p in Permissions if p not in ON_DEPLOYMENT}
        if unknown:
            raise InputError(
                f"this Dagster has mutations or permissions that nobody gave a right: {', '.join(sorted(unknown))}",
                hint="install the versions of requirements/*.lock; or extend akidb_pipelines/operations/access/rights.py",
            )
        for name, field in mutations.items():
            field.resolve = _guard(name, MUTATIONS[name], field.resolve)
        return schema

    def build_routes(self) -> list[BaseRoute]:
        """Also the journal."""
        return [Route("/access/decisions", self.decisions_endpoint), *super().build_routes()]  # type: ignore[no-untyped-call]

    async def decisions_endpoint(self, request: Request) -> Response:
        """The journal of a day, for who may audit."""
        with self.request_context(request) as context, context.deciding("GET /access/decisions"):
            if not context.may(AUDIT):
                return JSONResponse({"error": f"{context.principal.name} may not {AUDIT} (Cedar)"}, 403)
            return await run_in_threadpool(decisions_page, self._process_context.access.journal, request)

    async def graphql_http_endpoint(self, request: Request) -> Response:
        """Queries and mutations come as JSON by POST; a GET shows the GraphiQL page and runs nothing."""
        if request.method == "GET" and "text/html" in request.headers.get("accept", "") and "query" not in request.query_params:
            page: Response = await super().graphql_http_endpoint(request)
            return page
        if request.method != "POST":
            return PlainTextResponse("GraphQL is served by POST only", 405)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return PlainTextResponse("GraphQL is served as application/json only", 415)
        try:
            sent = await request.json()
        except ValueError:
            return PlainTextResponse("the request is no JSON", 400)
        if not isinstance(sent, dict) or not isinstance(sent.get("query"), str):
            return PlainTextResponse("one JSON object with one query is served, no batches", 400)
        answer: Response = await super().graphql_http_endpoint(request)
        return answer

    async def execute_graphql_subscription(
        self, websocket: WebSocket, operation_id: str, query: str, variables: dict[str, Any] | None, operation_name: str | None
    ) -> tuple[Any, Any]:
        """Over WebSocket subscriptions only."""
        try:
            operations = [d.operation for d in parse(query).definitions if isinstance(d, OperationDefinitionNode)]
        except GraphQLError as error:
            return None, {"message": str(error)}
        if any(operation is not OperationType.SUBSCRIPTION for operation in operations):
            return None, {"message": "only subscriptions are served over WebSocket"}
        answer: tuple[Any, Any] = await super().execute_graphql_subscription(
            websocket, operation_id, query, variables, operation_name
        )
        return answer

    async def download_notebook(self, request: Request) -> Response:
        """There are none, and the endpoint reads files by name."""
        return PlainTextResponse("there are no notebooks here", 404)

    async def download_captured_logs_endpoint(self, request: Request) -> Response:
        """Of runs only: a path that climbs is none."""
        if ".." in request.path_params["path"].split("/"):
            return PlainTextResponse("no such log", 404)
        log: Response = await super().download_captured_logs_endpoint(request)
        return log

    async def report_asset_materialization_endpoint(self, request: Request) -> JSONResponse:
        """Reported by who administers."""
        return await self._reported(request, super().report_asset_materialization_endpoint)

    async def report_asset_check_endpoint(self, request: Request) -> JSONResponse:
        """Reported by who administers."""
        return await self._reported(request, super().report_asset_check_endpoint)

    async def report_asset_observation_endpoint(self, request: Request) -> JSONResponse:
        """Reported by who administers."""
        return await self._reported(request, super().report_asset_observation_endpoint)

    async def _reported(self, request: Request, report: Callable[[Request], Any]) -> JSONResponse:
        with self.request_context(request) as context, context.deciding("report", request.url.path[:200]):
            if not context.may(ADMINISTER):
                return JSONResponse({"error": f"{context.principal.name} may not {ADMINISTER} (Cedar)"}, 403)
        answer: JSONResponse = await report(request)
        return answer


def _guard(name: str, right: Right | None, resolve: Callable[..., Any]) -> Callable[..., Any]:
    """A mutation's resolver that asks first. What it starts is decided where Dagster asks, by the same context."""

    async def guarded(root: object, info: Any, **arguments: Any) -> Any:
        context: CedarRequestContext = info.context
        with context.deciding(name, described(arguments)):
            needed = [right] if right else []
            if right is None and _may_leave_the_lab(context.instance, arguments):
                needed.append(OCI_DRILL)
            if claimed := claimed_tags(arguments):
                raise GraphQLError(
                    f"only Dagster's daemon writes {', '.join(sorted(claimed))}; {context.principal.name} may not (Cedar)"
                )
            for each in needed:
                if not context.may(each):
                    raise GraphQLError(f"{context.principal.name} may not {each} (Cedar)")
            done = resolve(root, info, **arguments)
            return await done if isawaitable(done) else done

    return guarded


def _may_leave_the_lab(instance: DagsterInstance, arguments: object) -> bool:
    """Whether what is started may be a drill elsewhere: by the configuration sent, or that of the run or backfill it repeats."""
    taken_over: list[object] = []
    for parent in parents(arguments):
        run = instance.get_run_by_id(parent)
        backfill = None if run else instance.get_backfill(parent)
        taken_over.append(run.run_config if run else backfill.run_config if backfill else None)
    return any(leaves_the_lab(c) for c in (*configurations(arguments), *taken_over) if c)
