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
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from inspect import isawaitable
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import anyio
from dagster._core.workspace.permissions import Permissions
from dagster_graphql.implementation.utils import has_permission_for_backfill
from dagster_graphql.schema.backfill import GrapheneResumeBackfillSuccess
from dagster_webserver.graphql import _handle_async_results
from dagster_webserver.webserver import DagsterWebserver
from graphene import Schema
from graphql import (
    ASTValidationRule,
    ExecutionResult,
    GraphQLError,
    create_source_event_stream,
    execute,
)
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from akidb_pipelines.errors import InputError, PipelineError
from akidb_pipelines.operations.access.about import described, reported
from akidb_pipelines.operations.access.asked import FewChanges, UnservedError, asked, body_of, parsed, subscription
from akidb_pipelines.operations.access.context import SCOPE_KEY, CedarProcessContext, CedarRequestContext, Matter
from akidb_pipelines.operations.access.identity import Doorkeeper, Principal, RefusedTokenError
from akidb_pipelines.operations.access.limits import (
    LET_GO_S,
    SOCKETS,
    THREADS,
    WATCHED,
    BusyError,
    Places,
    Threads,
    TooMuchError,
    bound_lists,
    metered,
)
from akidb_pipelines.operations.access.pages import decisions_page
from akidb_pipelines.operations.access.reach import executions_of
from akidb_pipelines.operations.access.rights import ADMINISTER, AUDIT, MUTATIONS, ON_DEPLOYMENT, OPERATE, VIEW, Right
from akidb_pipelines.operations.access.takeover import resume, retag

_log = logging.getLogger(__name__)
_OPEN = frozenset({"/server_info"})
"""Version numbers, for health checks."""
_READ = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOK_AGAIN_S = 5
R = TypeVar("R", bound=Response)


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
        self._threads, self._sockets = anyio.CapacityLimiter(THREADS), Places(SOCKETS)  # apart from those that answer

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
            principal = await anyio.to_thread.run_sync(self._admit, headers, scope, limiter=self._threads)
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
        if not self._sockets.take(principal.id):
            await _turn_away(scope, receive, send, 429, f"{SOCKETS} connections of yours are open already")
            return
        try:
            await self._keep_open(principal, scope, receive, send)
        finally:
            self._sockets.leave(principal.id)

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
        self._threads, self._watched = Threads(), Places(WATCHED)
        super().__init__(process_context)

    async def turn(self) -> None:
        """Comes back when a request would be answered now."""
        await self._threads.run("", lambda: None)

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
        preview = schema.graphql_schema.type_map["DryRunInstigationTick"].fields["evaluationResult"]
        preview.resolve = _guard_preview(preview.resolve)
        bound_lists(schema.graphql_schema)
        return schema

    def build_graphql_validation_rules(self) -> list[type[ASTValidationRule]]:
        """GraphQL's, and one of ours."""
        return [*super().build_graphql_validation_rules(), FewChanges]

    def build_graphql_middleware(self) -> list[Any]:
        """What an answer takes is measured."""
        return [metered]

    def build_routes(self) -> list[BaseRoute]:
        """Also the journal."""
        return [Route("/access/decisions", self.decisions_endpoint), *super().build_routes()]  # type: ignore[no-untyped-call]

    async def decisions_endpoint(self, request: Request) -> Response:
        """The journal of a day, for who may audit."""

        async def decided(request: Request) -> Response:
            with self.request_context(request) as context, context.deciding("GET /access/decisions"):
                if not context.may(AUDIT):
                    return JSONResponse({"error": f"{context.principal.name} may not {AUDIT} (Cedar)"}, 403)
                return decisions_page(self._process_context.access.journal, request)

        return await self._aside(decided, request)

    async def graphql_http_endpoint(self, request: Request) -> Response:
        """Queries and mutations come as JSON by POST; a GET shows the GraphiQL page and runs nothing."""
        if request.method == "GET" and "text/html" in request.headers.get("accept", "") and "query" not in request.query_params:
            page: Response = await super().graphql_http_endpoint(request)
            return page
        try:
            query, variables, operation = await asked(request)
        except UnservedError as error:
            return PlainTextResponse(error.why, error.status)
        # What was looked at is what is run: Dagster's own endpoint would read the request again, and its URL.
        return await self.execute_graphql_request(request, query, variables, operation)

    async def execute_graphql_request(
        self, request: Request, query: str, variables: dict[str, Any] | None, operation_name: str | None
    ) -> JSONResponse:
        """In a thread, and not for ever."""
        work = partial(self.graphql_execution_thread, request, query, variables, operation_name)
        try:
            return await self._threads.run(_who(request), work)
        except TooMuchError as error:
            return JSONResponse({"errors": [{"message": str(error)}]}, 400)
        except BusyError as error:
            return JSONResponse({"errors": [{"message": str(error)}]}, 429)

    async def execute_graphql_subscription(
        self, websocket: WebSocket, operation_id: str, query: str, variables: dict[str, Any] | None, operation_name: str | None
    ) -> tuple[Any, Any]:
        """Over WebSocket subscriptions only. What is told is made in threads; what it is about Dagster still reads between connections."""
        who, schema = _who(websocket), self._graphene_schema.graphql_schema
        try:
            document = await self._threads.run(who, partial(subscription, query, schema))
        except (GraphQLError, UnservedError, BusyError) as error:
            return None, {"message": str(error)}
        if not self._watched.take(who):
            return None, {"message": f"{WATCHED} runs and logs are watched by you already"}

        def told(event: object) -> ExecutionResult:
            async def result() -> ExecutionResult:
                with self.request_context(websocket) as context:
                    done = execute(schema, document, event, context, variables, operation_name, middleware=[metered])
                    return await done if isawaitable(done) else done

            return asyncio.run(result())

        async def results(events: Any) -> AsyncGenerator[ExecutionResult, None]:
            async with aclosing(events):
                async for event in events:
                    try:
                        yield await self._threads.run(who, partial(told, event), however_many=True)
                    except TooMuchError as error:
                        raise GraphQLError(str(error)) from error

        task = None
        try:
            with self.request_context(websocket) as context:
                events = await create_source_event_stream(schema, document, None, context, variables, operation_name)
            if isinstance(events, ExecutionResult):
                return None, self.handle_graphql_errors(events.errors or [])[0]
            task = asyncio.ensure_future(_handle_async_results(results(events), operation_id, websocket))
            task.add_done_callback(lambda _: asyncio.get_running_loop().call_later(LET_GO_S, self._watched.leave, who))
            return task, None
        finally:
            if task is None:
                self._watched.leave(who)

    async def _aside(self, endpoint: Callable[[Request], Coroutine[Any, Any, R]], request: Request) -> R:
        """In a thread what Dagster does where all connections are served."""
        try:
            return await self._threads.run(_who(request), lambda: asyncio.run(endpoint(request)))
        except BusyError as error:
            raise HTTPException(429, str(error)) from None

    async def download_debug_file_endpoint(self, request: Request) -> Response:
        """All that is known about a run."""
        download = super().download_debug_file_endpoint

        async def of_a_run(request: Request) -> Response:
            if not self._process_context.instance.get_run_by_id(request.path_params["run_id"]):
                return PlainTextResponse("no such run", 404)
            found: Response = await download(request)
            return found

        return await self._aside(of_a_run, request)

    async def download_notebook(self, request: Request) -> Response:
        """There are none, and the endpoint reads files by name."""
        return PlainTextResponse("there are no notebooks here", 404)

    async def download_captured_logs_endpoint(self, request: Request) -> Response:
        """Of runs only: a path that climbs is none."""
        if ".." in request.path_params["path"].split("/"):
            return PlainTextResponse("no such log", 404)
        return await self._aside(super().download_captured_logs_endpoint, request)

    async def report_asset_materialization_endpoint(self, request: Request) -> JSONResponse:
        """Reported by who administers."""
        return await self._reported(request, super().report_asset_materialization_endpoint)

    async def report_asset_check_endpoint(self, request: Request) -> JSONResponse:
        """Reported by who administers."""
        return await self._reported(request, super().report_asset_check_endpoint)

    async def report_asset_observation_endpoint(self, request: Request) -> JSONResponse:
        """Reported by who administers."""
        return await self._reported(request, super().report_asset_observation_endpoint)

    async def _reported(self, request: Request, report: Callable[[Request], Coroutine[Any, Any, JSONResponse]]) -> JSONResponse:
        try:
            body = await body_of(request)
            # As Dagster does: without that header it does not look at the body.
            sent = parsed(body) if request.headers.get("content-type") == "application/json" else {}
        except UnservedError as error:
            return JSONResponse({"error": error.why}, error.status)
        told = {**request.query_params, **(sent if isinstance(sent, dict) else {})}

        async def decided(request: Request) -> JSONResponse:
            about = reported(request.path_params["asset_key"], told)
            with self.request_context(request) as context, context.deciding(request.url.path.split("/")[1], about):
                if not context.may(ADMINISTER):
                    return JSONResponse({"error": f"{context.principal.name} may not {ADMINISTER} (Cedar)"}, 403)
            return await report(Request(request.scope, again))

        async def again() -> Message:
            return {"type": "http.request", "body": body}

        return await self._aside(decided, request)


def _who(connection: HTTPConnection) -> str:
    principal: Principal = connection.scope[SCOPE_KEY]
    return principal.id


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
        names = context.instigators() if name in _BY_ID else {}
        with context.deciding(name, described(arguments, names), described(arguments, names, in_full=False)):
            if right:
                return await resolved() if context.may(right) else refuse(right)
            for execution in executions_of(arguments, context.instance):
                if what := context.forbidden(execution):
                    refuse(what)
            if name == "resumePartitionBackfill":
                backfill = context.instance.get_backfill(id_ := arguments["backfillId"])
                # Else Dagster says that there is none, or denies it.
                if backfill and has_permission_for_backfill(info, Permissions.LAUNCH_PARTITION_BACKFILL, backfill):
                    try:
                        resume(context.instance, id_, context.get_viewer_tags())
                    except PipelineError as error:
                        raise GraphQLError(str(error), info.field_nodes, path=info.path.as_list()) from None
                    return GrapheneResumeBackfillSuccess(backfill_id=id_)
            result = await resolved()
            if name == "reexecutePartitionBackfill" and (new := getattr(result, "backfill_id", "")):
                _name_who_asked(context, new)
            return result

    return guarded


def _name_who_asked(context: CedarRequestContext, backfill_id: str) -> None:
    """A backfill that is run again has the tags of the one before. It has begun: what goes wrong here is told in the log."""
    try:
        retag(context.instance, backfill_id, context.get_viewer_tags())
    except Exception:  # noqa: BLE001 - whatever the database raises
        _log.exception("backfill %s does not carry the name of %s", backfill_id, context.principal.name)


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


_BY_ID = frozenset({"stopRunningSchedule", "stopSensor"})
"""They take an id where others take a name."""
