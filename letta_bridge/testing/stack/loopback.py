"""JSON over HTTP to servers of this machine, past any proxy. Blocking: call it in a thread."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """The server answered with an error status; ``status`` and the answer's text say which."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text[:500]}")
        self.status = status


def answers(url: str) -> bool:
    """Whether a GET of this URL gives a status below 300 within two seconds."""
    try:
        with _opener.open(url, timeout=2) as answer:
            return bool(answer.status < 300)
    except OSError:
        return False


def request_json(
    url: str, body: Mapping[str, Any] | None = None, *, token: str | None = None, seconds: float = 30
) -> Any:
    """The JSON answer to a GET, or to a POST when there is a body. Raises Refused or OSError."""
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with _opener.open(urllib.request.Request(url, data, headers), timeout=seconds) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(error.code, error.read().decode(errors="replace")) from error
