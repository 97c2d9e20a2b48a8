"""Log lines for people or for machines, with every known secret left out."""

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import quote

HIDDEN = "[secret]"
_SHORTEST = 4
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


_TALKATIVE = ("aiosqlite", "asyncpg", "httpcore", "httpx", "letta_client", "mau.db", "mau.http")
"""Libraries that write requests, statements and their values, and with them what people said, at DEBUG or INFO."""


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
        """The traceback of a record, or nothing."""
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        return "\n".join(parts + ([self.formatStack(record.stack_info)] if record.stack_info else []))


class TextFormatter(_Hiding):
    """``time LEVEL logger: message key=value …``"""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_shown(value)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{fields}"
        trouble = self.trouble(record)
        return self.hide(f"{line}\n{trouble}" if trouble else line)


class JsonFormatter(_Hiding):
    """One JSON object per line: time, level, logger, message, the fields, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {f"{key}_" if key in line else key: value for key, value in _fields(record).items()}
        if trouble := self.trouble(record):
            line["traceback"] = trouble
        return self.hide(json.dumps(line, ensure_ascii=False, default=str))


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
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(secrets) if style == "json" else TextFormatter(secrets))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level if level in ("DEBUG", "ERROR") else "WARNING")
    logging.getLogger("letta_bridge").setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
