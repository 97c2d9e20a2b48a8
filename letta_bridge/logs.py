"""Log lines for people or for machines: no secret at any level, and above DEBUG nothing that people or agents said.

What our own code writes at INFO and above is chosen so. An exception from elsewhere is not: a database names the row
that it refused, a parser the text that it could not read. So above DEBUG a traceback says where and what kind, and the
words follow as a line of their own, at DEBUG.
"""

import json
import logging
import sqlite3
import sys
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import quote

HIDDEN = "[secret]"
_SHORTEST = 4
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


_TALKATIVE = ("aiosqlite", "asyncpg", "httpcore", "httpx", "letta_client", "markdown_it", "mau.db", "mau.http")
"""Libraries that write requests, statements and their values, and with them what people said, at DEBUG or INFO; or
each step of reading a text."""

_OURS = __name__.partition(".")[0] + "."
_QUOTE_NOTHING = (AttributeError, ImportError, NameError, RecursionError, ZeroDivisionError, sqlite3.Error)
"""Exceptions whose words name code or files, never values."""


class _Hiding(logging.Formatter):
    """Takes known secrets out of whatever a line ends up with, tracebacks included."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        forms = {form for secret in secrets for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])}
        # the longest first: one secret may contain another
        self._secrets = sorted((form for form in forms if len(form) >= _SHORTEST), key=len, reverse=True)

    def hide(self, text: str) -> str:
        """``text`` without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    def trouble(self, record: logging.LogRecord) -> str:
        """The traceback of a record, or nothing; above DEBUG without words that may quote a message."""
        parts = []
        if record.exc_info and record.exc_info[1] is not None:
            whole = record.levelno <= logging.DEBUG
            parts = [self.formatException(record.exc_info) if whole else "".join(_outline(record.exc_info[1])).rstrip()]
        return "\n".join(parts + ([self.formatStack(record.stack_info)] if record.stack_info else []))


class TextFormatter(_Hiding):
    """``time LEVEL logger: message key=value …``"""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_shown(value)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {_message(record)}{fields}"
        trouble = self.trouble(record)
        return self.hide(f"{line}\n{trouble}" if trouble else line)


class JsonFormatter(_Hiding):
    """One JSON object per line: time, level, logger, message, the fields, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        line |= {f"{key}_" if key in line else key: value for key, value in _fields(record).items()}
        if trouble := self.trouble(record):
            line["traceback"] = trouble
        return self.hide(json.dumps(line, ensure_ascii=False, default=str))


class _Handler(logging.StreamHandler[TextIO]):
    """Writes the words of exceptions too, where DEBUG is asked for."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if record.levelno <= logging.DEBUG or not logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
            return
        if record.exc_info and record.exc_info[1] is not None:
            words = " / ".join(f"{type(error).__name__}: {error}" for error in _chain(record.exc_info[1]))
            fields = {"action": "error_words", "of": getattr(record, "action", ""), "text": words}
            known = {"name": record.name, "levelno": logging.DEBUG, "levelname": "DEBUG"}
            super().emit(logging.makeLogRecord({**known, "msg": "what the error said", **fields}))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that led to it, the last first."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        before = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        waiting += [before] if before is not None else []
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else []


def _outline(error: BaseException) -> Iterator[str]:
    """A traceback in the order of what happened: places and kinds, and the words of what quotes nothing."""
    for number, one in enumerate(reversed([*_chain(error)])):
        yield "and then:\n" if number else "Traceback (most recent call last):\n"
        yield from traceback.format_tb(one.__traceback__)
        words = _words(one)
        yield f"{type(one).__module__}.{type(one).__qualname__}{': ' if words else ''}{words}\n"


def _words(error: BaseException) -> str:
    if isinstance(error, _QUOTE_NOTHING) or type(error).__module__.startswith(_OURS):
        return str(error)
    return error.strerror or "" if isinstance(error, OSError) else ""


def _message(record: logging.LogRecord) -> str:
    """What a line says. asyncio puts the words of an exception behind its own first line."""
    text = record.getMessage()
    return text.partition("\n")[0] if record.name == "asyncio" and record.levelno > logging.DEBUG else text


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _shown(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(char in ' "=' for char in text)
    return text if plain else json.dumps(text, ensure_ascii=True)


def setup(level: str, style: str, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Send every log line to ``stream`` (standard error), replacing what was set up before.

    Args:
        level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``, for the bridge's own lines; libraries below a
            warning are heard only with ``DEBUG``, and those that would repeat messages never.
        style: ``text`` or ``json``.
        secrets: texts that must not appear, for example ``config.secrets()``.
    """
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(secrets) if style == "json" else TextFormatter(secrets))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level if level in ("DEBUG", "ERROR") else "WARNING")
    logging.getLogger("letta_bridge").setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
