"""One person's requests, however large and many, leave something of the front for the others."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
import websockets
from dagster_graphql.schema import create_schema
from graphql import OperationType, execute, parse

from akidb_pipelines.operations.access.limits import (
    LET_GO_S,
    LISTS,
    RECORDS,
    SOCKETS,
    WATCHED,
    BusyError,
    Meter,
    Threads,
    TooMuchError,
    bound_lists,
    metered,
)

WITHOUT_END = "{ assetNodes { " + "repository { assetNodes { " * 4 + "id " + "} } " * 4 + "} }"
"""Assets by way of their repository: each step has some fifty times as many as the one before."""


def test_an_answer_without_end_is_cut_off_and_others_are_answered_meanwhile(front, issuer):
    greedy, other = issuer.token("application-engineering"), issuer.token("qa")
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(front.graphql, WITHOUT_END, greedy) for _ in range(3)]
        time.sleep(0.5)
        assert front.graphql("{ version }", other)["data"]["version"]
        assert not any(answer.done() for answer in asked), "the others were answered after, not meanwhile"
        told = [answer.result()["errors"][0]["message"] for answer in asked]
    assert {message.partition(":")[2] for message in told} == {" ask for less at a time"}


def _socket(front, token):
    url = front.url.replace("http", "ws") + "/graphql"
    return websockets.connect(url, subprotocols=["graphql-ws"], additional_headers={"Authorization": f"Bearer {token}"})


async def _start(socket, number, document):
    await socket.send(json.dumps({"type": "start", "id": str(number), "payload": {"query": document}}))


def test_a_run_is_watched_as_it_goes_on(front, issuer, instance):
    started = front.graphql(
        'mutation { launchRun(executionParams: {selector: {repositoryName: "__repository__", repositoryLocationName: '
        '"akidb_pipelines", jobName: "fixtures"}}) { ... on LaunchRunSuccess { run { runId } } } }',
        issuer.token("qa"),
    )
    run_id = started["data"]["launchRun"]["run"]["runId"]
    wanted = "... on PipelineRunLogsSubscriptionSuccess { run { runId jobName } messages { ... on MessageEvent { message } } }"

    async def watch():
        async with _socket(front, issuer.token("security")) as socket:
            await _start(socket, 1, f'subscription {{ pipelineRunLogs(runId: "{run_id}") {{ {wanted} }} }}')
            first = json.loads(await asyncio.wait_for(socket.recv(), 20))["payload"]["data"]["pipelineRunLogs"]
            instance.report_engine_event("something happened", instance.get_run_by_id(run_id))
            while "something happened" not in (told := await asyncio.wait_for(socket.recv(), 20)):
                pass
            return first, json.loads(told)["payload"]

    first, then = asyncio.run(watch())
    assert first["run"] == {"runId": run_id, "jobName": "fixtures"}
    assert "errors" not in then
    debug = httpx.get(f"{front.url}/download_debug/{run_id}", headers={"Authorization": f"Bearer {issuer.token('qa')}"}, timeout=30)
    assert b"something happened" in gzip.decompress(debug.content)


def test_a_file_about_a_run_that_there_is_not(front, issuer):
    answer = httpx.get(f"{front.url}/download_debug/nothing", headers={"Authorization": f"Bearer {issuer.token('qa')}"}, timeout=30)
    assert (answer.status_code, answer.text) == (404, "no such run")


def test_so_much_is_watched_and_no_more(front, issuer):
    document = "subscription { locationStateChangeEvents { event { message } } }"

    async def watch():
        async with _socket(front, issuer.token("qa")) as socket:
            for number in range(WATCHED + 1):
                await _start(socket, number, document)
            refused = json.loads(await asyncio.wait_for(socket.recv(), 30))
            # One that ends makes room, when whatever was read for it has ended, too.
            await socket.send(json.dumps({"type": "stop", "id": "0"}))
            await _start(socket, "soon", document)
            early = json.loads(await asyncio.wait_for(socket.recv(), 30))
            assert (early["type"], early["id"]) == ("error", "soon")
            await asyncio.sleep(LET_GO_S + 0.5)
            await _start(socket, "again", document)
            await _start(socket, "last", document)
            return refused, json.loads(await asyncio.wait_for(socket.recv(), 30))

    for refused, number in zip(asyncio.run(watch()), (str(WATCHED), "last"), strict=True):
        assert (refused["type"], refused["id"]) == ("error", number)
        assert f"{WATCHED} runs and logs" in refused["payload"]["message"]


def test_so_many_connections_and_no_more(front, issuer):
    async def open_all(team):
        sockets = []
        try:
            for _ in range(SOCKETS):
                sockets.append(await _socket(front, issuer.token(team)))
            with pytest.raises(websockets.exceptions.InvalidStatus):
                await _socket(front, issuer.token(team))
            other = await _socket(front, issuer.token("security"))
            await other.close()
        finally:
            for socket in sockets:
                await socket.close()

    asyncio.run(open_all("qa"))
    asyncio.run(open_all("qa"))  # closed ones do not count


def test_one_person_waits_for_themselves_and_others_do_not():
    done = threading.Event()

    async def all_at_once():
        threads = Threads(in_all=3, of_one=2, waiting=1)
        greedy = [asyncio.ensure_future(threads.run("a", lambda: done.wait(20))) for _ in range(3)]
        await asyncio.sleep(0.1)
        with pytest.raises(BusyError, match="wait already"):
            await threads.run("a", done.wait)
        answered = await asyncio.wait_for(threads.run("b", lambda: "answered"), 10)
        done.set()
        return answered, await asyncio.gather(*greedy), await threads.run("a", lambda: "again")

    assert asyncio.run(all_at_once()) == ("answered", [True] * 3, "again")


def test_whoever_goes_away_leaves_a_place_taken_until_the_thread_is_done():
    """Else start and stop, again and again, would have any number of threads at work."""
    at_work, most, lock = [0], [0], threading.Lock()

    def work():
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.3)
        with lock:
            at_work[0] -= 1
        raise TooMuchError("and nobody is there to hear it")

    async def come_and_go():
        threads = Threads(in_all=4, of_one=2)
        for _ in range(12):
            task = asyncio.ensure_future(threads.run("a", work))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await asyncio.wait_for(threads.run("a", lambda: "answered"), 10)

    assert asyncio.run(come_and_go()) == "answered"
    assert most[0] == 2


@pytest.mark.parametrize(
    ("values", "fits"),
    [([1] * 10, True), ([1] * 11, False), (["x" * 2000], True), (["x" * 3000], False), ([[1] * 9], True), ([{1: 1}] * 6, False)],
)
def test_an_answer_has_so_many_values(values, fits):
    meter = Meter(values=10)
    try:
        for value in values:
            meter.take(value)
    except TooMuchError as error:
        assert not fits, error
    else:
        assert fits


def test_time_counts_for_what_is_read_and_not_for_what_is_changed():
    def asked(operation):
        info = SimpleNamespace(context=SimpleNamespace(meter=Meter(seconds=-1)), operation=SimpleNamespace(operation=operation))
        return metered(lambda *_: "value", None, info)

    assert asked(OperationType.MUTATION) == "value"
    with pytest.raises(TooMuchError, match="took more than"):
        asked(OperationType.QUERY)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("", RECORDS),
        ("(limit: null)", RECORDS),
        ("(limit: 2147483647)", RECORDS),
        ("(limit: -1)", RECORDS),
        ("(limit: 0)", RECORDS),
        ("(limit: 3)", 3),
    ],
)
def test_no_field_reads_more_than_a_thousand_records(arguments, read):
    schema = create_schema().graphql_schema
    seen = []
    schema.query_type.fields["runsOrError"].resolve = lambda *_, **given: seen.append(given["limit"])
    bound_lists(schema)
    execute(schema, parse(f"{{ runsOrError{arguments} {{ __typename }} }}"))
    assert seen == [read]


def test_every_field_that_could_list_more_and_more_is_bounded():
    """Whoever raises Dagster's version decides about new ones."""
    of_definitions = {
        "assetCheckSelection",
        "assetChecksOrError",
        "assetNodesConnection",
        "assetRecordsOrError",
        "assetSelection",
        "assetsOrError",
        "partitionKeyConnection",
        "partitionKeysOrError",
        "partitionsOrError",
        "runTagsOrError",
    }
    schema = create_schema().graphql_schema
    kinds = [kind for kind in schema.type_map.values() if kind is not schema.mutation_type]
    fields = [(name, {*getattr(f, "args", ())}) for kind in kinds for name, f in getattr(kind, "fields", {}).items()]
    limited = {name for name, arguments in fields if {"limit", "upperLimit"} & arguments}
    assert limited == LISTS | of_definitions | {"capturedLogs"}  # bytes of one log


def test_fields_that_count_ticks_do_without_a_limit(front, issuer):
    of = '{repositoryName: "__repository__", repositoryLocationName: "akidb_pipelines", scheduleName: "runner_capacity"}'
    schedule = "potentialTickTimestamps(startTimestamp: 1764000000) futureTicks(until: 1764003600) { results { timestamp } }"
    document = f"{{ scheduleOrError(scheduleSelector: {of}) {{ ... on Schedule {{ {schedule} }} }} }}"
    found = front.graphql(document, issuer.token("qa"))["data"]["scheduleOrError"]
    assert len(found["potentialTickTimestamps"]) > 1
    assert "results" in found["futureTicks"]
