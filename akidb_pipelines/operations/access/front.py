"""The webserver behind the front: nobody is served without a valid token, nothing is changed without Cedar's word.

    request -> Gate (token, view, same origin) -> Dagster's webserver (JSON only, guarded mutations) -> CedarRequestContext

Stock Dagster runs mutations over GET and from any origin, and leaves some mutations and its REST endpoints without a check. Here each of
its mutations is wrapped by a guard, by name; if Dagster grows one that nobody has given a right, the front does not start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from inspect import isawaitable
from typing import Any, NoReturn
from urllib.parse import urlsplit

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
from akidb_pipelines.operations.access.reach import described, executions_of
from akidb_pipelines.operations.access.rights import ADMINISTER, AUDIT, MUTATIONS, ON_DEPLOYMENT, OPERATE, VIEW, Right

_log = logging.getLogger(__name__)
_OPEN = frozenset({"/server_info"})
"""Version numbers, for health checks."""
_READ = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOK_AGAIN_S = 5
MESSAGE_BYTES = 1 << 20
"""Largest request that is read; the UI's are some kB."""
_QUERY_LENGTH = 1 << 16
"""Longest GraphQL document: checking a longer one would hold up everybody else's. The UI's largest has some 20 kB."""


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
        await self._keep_open(principal, scope, receive, send)

    async def _keep_open(self, principal: Principal, scope: Scope, receive: Receive, send: Send) -> None:
        """A connection that stays open must not outlive the token that opened it, nor the right to look."""
        serving = asyncio.ensure_future(self._app(scope, receive, send))
        try:
            while not serving.done():
                left = principal.expires - time.time()
                if left <= 0:
                    await send({"type": "websocket.close", "code": 4401, "reason": "the token has ended"})
                    return
                if not self._context.access.judge.decide(principal, VIEW).allowed:
                    await send({"type": "websocket.close", "code": 4403, "reason": "looking is no longer permitted"})
                    return
                await asyncio.wait({serving}, timeout=min(left, _LOOK_AGAIN_S))
            await serving
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

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
        """Every mutation behind its guard, and what a query runs or counts out.

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
        types = schema.graphql_schema.type_map
        preview = types["DryRunInstigationTick"].fields["evaluationResult"]
        preview.resolve = _guard_preview(preview.resolve)
        for name in ("futureTicks", "potentialTickTimestamps"):
            ticks = types["Schedule"].fields[name]
            ticks.resolve = _few_ticks(ticks.resolve)
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
        try:
            query, variables, operation = await _asked(request)
        except _UnservedError as error:
            return PlainTextResponse(error.why, error.status)
        # What was looked at is what is run: Dagster's own endpoint would read the request again, and its URL.
        return await self.execute_graphql_request(request, query, variables, operation)

    async def execute_graphql_subscription(
        self, websocket: WebSocket, operation_id: str, query: str, variables: dict[str, Any] | None, operation_name: str | None
    ) -> tuple[Any, Any]:
        """Over WebSocket subscriptions only."""
        try:
            document = await run_in_threadpool(parse, _short(query))
        except (GraphQLError, _UnservedError) as error:
            return None, {"message": str(error)}
        operations = [d.operation for d in document.definitions if isinstance(d, OperationDefinitionNode)]
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


class _UnservedError(Exception):
    """A request of the wrong kind."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


async def _asked(request: Request) -> tuple[str, dict[str, Any], str | None]:
    """Document, variables and the name of the operation, of one JSON object by POST.

    Raises:
        _UnservedError: it is something else.
    """
    if request.method != "POST":
        raise _UnservedError(405, "GraphQL is served by POST only")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _UnservedError(415, "GraphQL is served as application/json only")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MESSAGE_BYTES:
            raise _UnservedError(413, f"requests of at most {MESSAGE_BYTES} bytes are served")
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        raise _UnservedError(400, "the request is no JSON") from None
    match sent:
        case {"query": str(query)}:
            variables, operation = sent.get("variables") or {}, sent.get("operationName")
            if isinstance(variables, dict) and isinstance(operation, str | None):
                return _short(query), variables, operation
    raise _UnservedError(400, "one JSON object with one query is served, no batches")


def _short(query: object) -> str:
    if not isinstance(query, str) or len(query) > _QUERY_LENGTH:
        raise _UnservedError(413, f"GraphQL documents of at most {_QUERY_LENGTH} characters are served")
    return query


def _guard(name: str, right: Right | None, resolve: Callable[..., Any]) -> Callable[..., Any]:
    """A mutation's resolver that asks first. What it starts is decided here, or where Dagster asks, by the same context."""

    async def guarded(root: object, info: Any, **arguments: Any) -> Any:
        context: CedarRequestContext = info.context

        def refuse(what: object) -> NoReturn:
            # With its path it is told as it is: without, Dagster would add the stack of where it was raised.
            raise GraphQLError(f"{context.principal.name} may not {what} (Cedar)", info.field_nodes, path=info.path.as_list())

        async def resolved() -> Any:
            done = resolve(root, info, **arguments)
            return await done if isawaitable(done) else done

        if right == VIEW:
            return await resolved()  # was decided at the gate, and changes nothing
        with context.deciding(name, described(arguments)):
            if right:
                return await resolved() if context.may(right) else refuse(right)
            for execution in executions_of(arguments, context.instance):
                if what := context.forbidden(execution):
                    refuse(what)
            result = await resolved()
            if name in _TAKE_OVER:
                _name_who_asked(context, result)
            return result

    return guarded


def _guard_preview(resolve: Callable[..., Any]) -> Callable[..., Any]:
    """What a sensor or schedule would do is found out by running it, from whichever query: it takes what its dry run does."""

    def guarded(root: Any, info: Any, **arguments: Any) -> Any:
        context: CedarRequestContext = info.context
        about = json.dumps({"name": root._selector.instigator_name})
        with context.deciding("evaluationResult", about):
            if context.may(OPERATE):
                return resolve(root, info, **arguments)
        why = f"{context.principal.name} may not {OPERATE} (Cedar)"
        raise GraphQLError(why, info.field_nodes, path=info.path.as_list())

    return guarded


_MOST_TICKS = 1000
"""Of a schedule in one answer; every quarter of an hour that is ten days. Dagster would count on until its memory is full."""


def _few_ticks(resolve: Callable[..., Any]) -> Callable[..., Any]:
    def limited(root: object, info: Any, **arguments: Any) -> Any:
        if arguments.get("until"):
            arguments["limit"] = arguments.get("limit") or _MOST_TICKS  # may be null, too
        for name in ("limit", "upper_limit", "lower_limit"):
            if arguments.get(name):
                arguments[name] = min(arguments[name], _MOST_TICKS)
        return resolve(root, info, **arguments)

    return limited


_TAKE_OVER = frozenset({"resumePartitionBackfill", "reexecutePartitionBackfill"})
"""Dagster keeps the tags of whoever started the backfill before."""


def _name_who_asked(context: CedarRequestContext, result: object) -> None:
    """From now on a backfill's runs carry the name of who took it up again. It has begun: what goes wrong here is told in the log."""
    try:
        backfill = context.instance.get_backfill(str(getattr(result, "backfill_id", "")))
        if backfill:
            context.instance.update_backfill(backfill._replace(tags={**(backfill.tags or {}), **context.get_viewer_tags()}))
    except Exception:  # noqa: BLE001 - whatever the database raises
        _log.exception("the backfill that %s took up again does not carry their name", context.principal.name)
