"""Log lines: readable, one per event for machines, and without secrets."""

import ast
import asyncio
import io
import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import letta_bridge
from letta_bridge import logs
from letta_bridge.letta.errors import Kind, LettaError
from letta_bridge.letta.v1_errors import classify_failure
from letta_bridge.matrix.homeserver import HomeserverError

log = logging.getLogger("letta_bridge.tests")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root, ours = logging.root, logging.getLogger("letta_bridge")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:], level, own = before
    root.setLevel(level)
    ours.setLevel(own)


def lines(style: str, secrets: tuple[str, ...] = (), level: str = "INFO") -> io.StringIO:
    stream = io.StringIO()
    logs.setup(level, style, secrets, stream)
    return stream


def test_text_shows_the_fields() -> None:
    stream = lines("text")
    log.info("turn done", extra={"action": "turn_done", "room": "!a b", "n": 3, "empty": ""})
    assert stream.getvalue().endswith('INFO letta_bridge.tests: turn done action=turn_done room="!a b" n=3 empty=""\n')


def test_a_field_cannot_forge_a_line() -> None:
    stream = lines("text")
    log.info("joined", extra={"room": "x\n2026 ERROR forged\x1b[31m"})
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_json_is_one_object_per_line() -> None:
    stream = lines("json")
    log.warning("odd", extra={"level": "x", "room": "!r", "thing": object})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["level"], line["level_"], line["room"]) == ("odd", "WARNING", "x", "!r")


@pytest.mark.parametrize("style", ["text", "json"])
def test_secrets_never_appear(style: str) -> None:
    stream = lines(style, ("tok/en+1", "tok/en+1-longer", "abc"))
    try:
        raise ValueError("token tok/en+1-longer failed")
    except ValueError:
        log.exception("cannot use %s", "tok/en+1", extra={"url": "http://x/?access_token=tok%2Fen%2B1"})
    assert "tok/en" not in stream.getvalue()
    assert "tok%2Fen" not in stream.getvalue()
    assert logs.HIDDEN in stream.getvalue()


def test_libraries_are_quiet_unless_asked_for() -> None:
    stream = lines("text")
    logging.getLogger("aiohttp.access").info("GET /")
    log.debug("detail")
    assert stream.getvalue() == ""
    stream = lines("text", level="DEBUG")
    logging.getLogger("aiohttp.access").info("GET /")
    log.debug("detail")
    assert len(stream.getvalue().splitlines()) == 2


# -- what exceptions say

BODY = "what-alice-wrote"


def fail(error: BaseException, cause: BaseException | None = None) -> None:
    try:
        try:
            raise cause or ValueError(BODY)
        except BaseException as first:
            raise error from first
    except BaseException:
        log.exception("it failed", extra={"action": "it_failed"})


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"cannot read {BODY}"),
        KeyError(BODY),
        asyncpg.CheckViolationError(f"Failing row contains ({BODY})"),
        UnicodeEncodeError("utf-8", BODY, 0, 1, "surrogates not allowed"),
        ExceptionGroup(BODY, [TypeError(BODY)]),
        LettaError(Kind.MODEL, f"HTTP 500: llm_error: you said {BODY}"),
        HomeserverError(400, "M_BAD_JSON", f"expected a number, got {BODY}"),
        HomeserverError(502, "", f"<html>{BODY}</html>"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_words_of_exceptions_are_for_debug_alone(style: str, error: BaseException) -> None:
    stream = lines(style)
    fail(error)
    assert BODY not in stream.getvalue()
    assert type(error).__name__ in stream.getvalue()
    assert "test_logs.py" in stream.getvalue(), "where it happened"
    stream = lines("json", level="DEBUG")
    fail(error)
    first, words = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (first["level"], BODY in str(first)) == ("ERROR", False)
    assert (words["level"], words["action"], words["of"]) == ("DEBUG", "error_words", "it_failed")
    assert BODY in words["text"]


def test_words_that_quote_nothing_stay() -> None:
    stream = lines("text")
    fail(sqlite3.OperationalError("database is locked"), OSError(28, "No space left on device", BODY))
    assert "sqlite3.OperationalError: database is locked" in stream.getvalue()
    assert "builtins.OSError: No space left on device" in stream.getvalue()
    assert BODY not in stream.getvalue()


def test_an_exception_that_is_its_own_cause_ends() -> None:
    stream = lines("text", level="DEBUG")
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    fail(one, two)
    assert "it_failed" in stream.getvalue()


async def test_what_asyncio_says_of_a_lost_task_quotes_nothing() -> None:
    stream = lines("text")

    async def lost() -> None:
        raise ValueError(BODY)

    task = asyncio.create_task(lost())
    await asyncio.wait({task})
    context = {"message": "Task exception was never retrieved", "exception": task.exception(), "future": task}
    asyncio.get_running_loop().default_exception_handler(context)
    assert "Task exception was never retrieved" in stream.getvalue()
    assert "ValueError" in stream.getvalue()
    assert BODY not in stream.getvalue()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"error_type": "llm_error", "detail": f"INTERNAL: you said {BODY}"}, "model: llm_error"),
        ({"error_type": BODY, "detail": BODY}, "internal"),
        (f"llm says {BODY}", "internal"),
        (f"{BODY}: llm_error: x", "internal"),
    ],
)
def test_a_failure_of_the_provider_is_its_kind_and_class(said: Any, shown: str) -> None:
    kind, detail = classify_failure(said, None)
    error = LettaError(kind, detail)
    assert str(error) == shown
    assert BODY in error.detail
    assert BODY not in repr(error)


# -- every line of the code

SOURCES = [
    path
    for path in Path(letta_bridge.__file__).parent.rglob("*.py")
    if not {"testing", "demo"} & {*path.relative_to(Path(letta_bridge.__file__).parent).parts}
]
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Every call of a logger with the function that it stands in."""
    for scope in ast.walk(tree):
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(scope):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                owner = node.func.value
                if node.func.attr in METHODS and isinstance(owner, ast.Name) and "log" in owner.id:
                    yield node, scope


def fields(call: ast.Call, scope: ast.AST) -> list[ast.Dict]:
    """What ``extra`` can be: the literal, or what its name was given last before the call."""
    value = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
    if isinstance(value, ast.Name):
        given = [
            node.value
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign)
            and node.lineno < call.lineno
            and any(isinstance(target, ast.Name) and target.id == value.id for target in node.targets)
        ]
        value = max(given, key=lambda one: one.lineno) if given else None
    return [value] if isinstance(value, ast.Dict) else []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_line_is_a_constant_text_with_fields(path: Path) -> None:
    for call, scope in calls(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.name}:{call.lineno}"
        (text,) = call.args
        assert isinstance(text, ast.Constant) and isinstance(text.value, str), f"{where}: not a constant text"
        assert "%" not in text.value, f"{where}: values belong into extra"
        (extra,) = fields(call, scope) or [None]
        assert extra is not None, f"{where}: no extra"
        known = {
            key.value: value
            for key, value in zip(extra.keys, extra.values, strict=True)
            if isinstance(key, ast.Constant)
        }
        action = known.get("action")
        assert isinstance(action, ast.Constant) and isinstance(action.value, str), f"{where}: no action"
        assert not {*known} & {"message", "name", "level", "args", "asctime"}, f"{where}: taken by logging itself"


def test_the_code_logs_at_all() -> None:
    assert sum(1 for path in SOURCES for _ in calls(ast.parse(path.read_text(encoding="utf-8")))) > 50
