"""Log lines: readable, one per event for machines, and without secrets."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from letta_bridge import logs

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
