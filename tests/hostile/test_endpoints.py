"""The appservice's endpoints, tried by Schemathesis from a description written by hand, and by raw bytes."""

from __future__ import annotations

import ast
import asyncio
import inspect
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import schemathesis
from schemathesis.engine import Status, events, from_schema
from yarl import URL

from letta_bridge.ids import EventID
from letta_bridge.matrix import intake

from ..integration.intake_kit import Scene, event_of, scene
from ..integration.world import World
from .kit import SEED, LogWatch

SPEC = Path(__file__).with_name("appservice.openapi.yaml")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "ignored_auth",
    "unsupported_method",
)
TOKEN = "test-hs-token"
AUTHORIZED = [
    ("PUT", "/_matrix/app/v1/transactions/t"),
    ("PUT", "/transactions/t"),
    ("GET", "/_matrix/app/v1/users/@letta_x:test.local"),
    ("GET", "/users/@letta_x:test.local"),
    ("GET", "/_matrix/app/v1/rooms/%23letta_x:test.local"),
    ("GET", "/rooms/%23letta_x:test.local"),
    ("POST", "/_matrix/app/v1/ping"),
    *(
        ("GET", f"/_matrix/app/{version}/thirdparty/{route}")
        for version in ("v1", "unstable")
        for route in ("protocol/irc", "user/irc", "location/irc", "user", "location")
    ),
]


@pytest_asyncio.fixture
async def at(sqlite_world: World) -> Scene:
    return await scene(sqlite_world)


@pytest_asyncio.fixture
async def http(at: Scene) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the appservice without any token."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{at.bridge.port}") as session:
        yield session


async def matrix_error(response: aiohttp.ClientResponse) -> str:
    """The errcode of an answer that is a Matrix error object."""
    assert response.content_type == "application/json", await response.text()
    answer = await response.json()
    assert set(answer) == {"errcode", "error"}
    assert re.fullmatch("M_[A-Z_]+", answer["errcode"]) and answer["error"]
    return str(answer["errcode"])


# -- Schemathesis


def _configuration(base_url: str, max_examples: int, seconds: int) -> schemathesis.Config:
    on = {"enabled": True}
    off = {"enabled": False}
    return schemathesis.Config.from_dict(
        {
            "base-url": base_url,
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "seed": SEED,
            "max-time": seconds,
            "continue-on-failure": True,
            "request-timeout": 10.0,
            "checks": {**off, **dict.fromkeys(CHECKS, on)},
            "phases": {"examples": off, "coverage": on, "fuzzing": on, "stateful": off},
            "generation": {"max-examples": max_examples, "deterministic": not SEED},
        }
    )


def _attack(base_url: str, max_examples: int, seconds: int) -> tuple[list[str], Counter[str]]:
    """Run Schemathesis; what it has to say, and how many requests were checked in each phase."""
    schema = schemathesis.openapi.from_path(SPEC, config=_configuration(base_url, max_examples, seconds))
    found: list[str] = []
    tried: Counter[str] = Counter()
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            found.append(f"error: {event.exception if isinstance(event, events.FatalError) else event.value!r}")
        if not isinstance(event, events.ScenarioFinished):
            continue
        tried[event.phase.name] += len(event.recorder.interactions)
        for case, checks in event.recorder.checks.items():
            for check in checks:
                if check.status is Status.FAILURE and check.failure_info is not None:
                    sent = event.recorder.interactions[case].request
                    failure = check.failure_info.failure
                    found.append(f"{check.name}: {sent.method} {sent.uri}: {failure.title}: {failure.message}")
    return found, tried


async def _finds_nothing(at: Scene, log_watch: LogWatch, max_examples: int, seconds: int) -> None:
    base_url = f"http://127.0.0.1:{at.bridge.port}"
    found, tried = await asyncio.to_thread(_attack, base_url, max_examples, seconds)
    assert not found, "\n".join(dict.fromkeys(found))
    assert tried.total() > 100, tried
    assert not log_watch.unexpected("intake_garbage")
    await at.alice.send(at.room, "still there?")
    await at.answered("still there?")


@pytest.mark.timeout(120)
async def test_schemathesis_finds_nothing(at: Scene, log_watch: LogWatch) -> None:
    await _finds_nothing(at, log_watch, 3, 12)


@pytest.mark.full
@pytest.mark.timeout(900)
async def test_schemathesis_finds_nothing_in_ten_minutes(at: Scene, log_watch: LogWatch) -> None:
    await _finds_nothing(at, log_watch, 300, 600)


# -- tokens

TOKENS = [
    ([], ["wrong"]),
    (["Bearer wrong"], []),
    (["Bearer wrong"], [TOKEN]),
    ([f"Bearer {TOKEN}"], ["wrong"]),
    ([f"Bearer {TOKEN}"], [""]),
    ([f"Bearer {TOKEN}", "Bearer wrong"], []),
    (["Bearer wrong", f"Bearer {TOKEN}"], []),
    ([f"Bearer {TOKEN}"], [TOKEN, "wrong"]),
    ([f"Bearer {TOKEN}"], ["wrong", TOKEN]),
    ([f"Basic {TOKEN}"], []),
    ([TOKEN], []),
    (["Bearer"], []),
    (["Bearer "], []),
    ([f"Bearer {TOKEN[:-1]}"], []),
    ([f"Bearer {TOKEN}x"], []),
    ([f"Bearer {TOKEN} {TOKEN}"], []),
    ([f"Bearer {TOKEN.upper()}"], []),
    (["Bearer tést-hs-tokén"], []),
    ([], ["\ud83d\ude00 test-hs-token"]),
    ([], [TOKEN + "\x00"]),
    (["Bearer test-as-token"], []),
]


async def test_any_wrong_token_is_refused(http: aiohttp.ClientSession, at: Scene) -> None:
    body = json.dumps({"events": [{**event_of(at, "let me in"), "event_id": "$smuggled"}]}).encode()
    for method, path in AUTHORIZED:
        async with http.request(method, path, data=body) as response:
            assert (response.status, await matrix_error(response)) == (401, "M_MISSING_TOKEN"), path
    for (method, path), (headers, queries) in itertools.product(AUTHORIZED, TOKENS):
        async with http.request(
            method,
            path,
            data=body,
            headers=[("Authorization", header) for header in headers],
            params=[("access_token", query) for query in queries],
        ) as response:
            assert (response.status, await matrix_error(response)) == (403, "M_FORBIDDEN"), (path, headers, queries)
    assert await at.bridge.inbox.event(EventID("$smuggled")) is None


async def test_every_right_token_passes(http: aiohttp.ClientSession) -> None:
    for headers, queries in (([f"Bearer {TOKEN}"], [TOKEN]), ([f"bearer  {TOKEN} "], []), ([], [TOKEN, TOKEN])):
        async with http.put(
            "/_matrix/app/v1/transactions/t",
            data=b"{}",
            headers=[("Authorization", header) for header in headers],
            params=[("access_token", query) for query in queries],
        ) as response:
            assert (response.status, await response.text()) == (200, "{}")


def test_every_token_is_compared_in_constant_time() -> None:
    """The token is used for ``hmac.compare_digest`` alone, whose results are all there before one is looked at."""
    tree = ast.parse(inspect.getsource(intake))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    uses = [
        parents[node]
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "_token" and isinstance(node.ctx, ast.Load)
    ]
    assert [ast.unparse(use.func) if isinstance(use, ast.Call) else use for use in uses] == ["hmac.compare_digest"]
    assert isinstance(parents[uses[0]], ast.ListComp)  # a generator would stop at the first wrong one
    names = [parents[node] for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "hs_token"]
    assert [ast.unparse(use) for use in names] == ["hs_token.encode"]


# -- methods, paths and bytes


async def test_what_is_not_served_is_said_as_matrix_says_it(http: aiohttp.ClientSession) -> None:
    unknown = [
        "/",
        "/_matrix",
        "/_matrix/app/v1/users/",
        "/_matrix/app/v1/users/a/b",
        "/_matrix/app/v1/nothing",
        "/_matrix/app/v2/transactions/1",
        "/_matrix/app/unstable/org.matrix.msc3984/keys/query",
        "/_matrix/client/v3/login",
        "/%ff%fe",
        "/%zz",
        "/users/@x:y/",
    ]
    for path, method in itertools.product(unknown, ("GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE")):
        async with http.request(method, URL(path, encoded=True)) as response:
            assert (response.status, await matrix_error(response)) == (404, "M_UNRECOGNIZED"), (method, path)
    served = [*AUTHORIZED, ("GET", "/_matrix/mau/live"), ("GET", "/_matrix/mau/ready")]
    for (right, path), method in itertools.product(served, ("GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH")):
        if method != right:
            async with http.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
                assert (response.status, await matrix_error(response)) == (405, "M_UNRECOGNIZED"), (method, path)
                assert right in response.headers["Allow"]
    async with http.head("/_matrix/mau/live") as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_nobody_is_found_at_other_networks(http: aiohttp.ClientSession) -> None:
    for method, path in AUTHORIZED:
        if "thirdparty" in path:
            async with http.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
                assert (response.status, await matrix_error(response)) == (404, "M_NOT_FOUND")


ODD_USERS = [
    "%00",
    "%",
    "%zz",
    "%ff",
    "%ed%a0%80",
    "@letta_%00:test.local",
    "@letta_%ff:test.local",
    "@letta_%ed%a0%80:test.local",
    "@letta_..%2f..%2fagents:test.local",
    "@letta_.=2e=2e=2fagents:test.local",
    "@letta_..:test.local",
    "@letta_" + "x" * 7000 + ":test.local",
    "@letta_:test.local",
    "@lettabridge:test.local:x",
    "@letta_%E2%80%AE:test.local",
]


async def test_odd_user_ids_are_nobody(http: aiohttp.ClientSession, log_watch: LogWatch) -> None:
    for user in ODD_USERS:
        path = URL(f"/_matrix/app/v1/users/{user}", encoded=True)
        async with http.get(path, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
            assert (response.status, await matrix_error(response)) == (404, "M_NOT_FOUND"), user
    assert not log_watch.unexpected()


async def test_the_content_type_does_not_matter(http: aiohttp.ClientSession, at: Scene) -> None:
    """A refusal would come again for ever."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", ""):
        body = json.dumps({"events": [event_of(at, f"as {kind}")]}).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
        async with http.put("/_matrix/app/v1/transactions/t", data=body, headers=headers) as response:
            assert response.status == 200
        await at.answered(f"as {kind}")


LINE = b"PUT /_matrix/app/v1/transactions/1 HTTP/1.1\r\nHost: x\r\n"
RIGHT = b"Authorization: Bearer test-hs-token\r\n"
RAW = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 100 + b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n",
    LINE + RIGHT + b"Content-Length: minus\r\n\r\n{}",
    LINE + RIGHT + b"Content-Length: -5\r\n\r\n{}",
    LINE + RIGHT + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    LINE + RIGHT + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n{}",
    LINE + RIGHT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    LINE + RIGHT + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    LINE + RIGHT + b"Transfer-Encoding: smoke\r\n\r\n{}",
    LINE + RIGHT + b"Expect: the-spanish-inquisition\r\nContent-Length: 2\r\n\r\n{}",
    b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://x:99999999/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET //users/@x:y HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


async def test_bytes_that_are_no_request(at: Scene, log_watch: LogWatch) -> None:
    for raw in RAW:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.bridge.port)
        writer.write(raw)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            assert length, head
            body = await reader.readexactly(int(length[1]))
        writer.close()
        assert re.match(rb"HTTP/1\.[01] 4\d\d ", head), (raw[:100], head)
        assert b"content-type: application/json" in head.lower()
        assert set(json.loads(body)) == {"errcode", "error"}
    assert not log_watch.unexpected()
    await at.alice.send(at.room, "still there?")
    await at.answered("still there?")
