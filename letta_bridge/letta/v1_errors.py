"""From what the V1 REST server (0.16.8) answers when something fails to a :class:`LettaError`.

Letta reports one and the same trouble in several shapes: an HTTP status with a body, an ``error_message`` inside a
stream that began with HTTP 200, and ``metadata.error`` of a run. All of them end here.
"""

import re
from collections.abc import Mapping
from typing import Any

import httpx
import letta_client

from ..ids import RunID
from .errors import Delivery, Kind, LettaError

FAILURES: Mapping[str, Kind] = {
    "error": Kind.INTERNAL,
    "llm_api_error": Kind.MODEL,
    "invalid_llm_response": Kind.MODEL,
    "invalid_tool_call": Kind.MODEL,
    "no_tool_call": Kind.MODEL,
    "insufficient_credits": Kind.MODEL_REFUSED,
    "context_window_overflow_in_system_prompt": Kind.CONTEXT_FULL,
}
"""Stop reasons of a run that did not end in good order. Every other one is an end, ``cancelled`` included."""

_BY_TYPE: Mapping[str, Kind] = {
    "llm_authentication": Kind.MODEL_REFUSED,
    "llm_bad_request": Kind.MODEL_REFUSED,
    "llm_insufficient_credits": Kind.MODEL_REFUSED,
    "bedrock_permission_denied": Kind.MODEL_REFUSED,
    "llm_error": Kind.MODEL,
    "llm_timeout": Kind.MODEL,
    "llm_rate_limit": Kind.MODEL,
    "llm_empty_response": Kind.MODEL,
    "stream_incomplete": Kind.INTERRUPTED,
    "stream_task_cancelled": Kind.INTERRUPTED,
}
# in a stream every refusal of the provider is an "llm_error"; only the code before the colon of `detail` tells
_BY_CODE: Mapping[str, Kind] = {
    "CONTEXT_WINDOW_EXCEEDED": Kind.CONTEXT_FULL,
    "INVALID_ARGUMENT": Kind.MODEL_REFUSED,
    "NOT_FOUND": Kind.MODEL_REFUSED,
    "PAYMENT_REQUIRED": Kind.MODEL_REFUSED,
    "PERMISSION_DENIED": Kind.MODEL_REFUSED,
    "UNAUTHENTICATED": Kind.MODEL_REFUSED,
    "UNPROCESSABLE_ENTITY": Kind.MODEL_REFUSED,
}
_CODE = re.compile(r"([A-Z_]{4,}):")
_APPROVAL = re.compile(r"waiting for approval|PENDING_APPROVAL", re.IGNORECASE)
_BUSY = re.compile(r"currently being processed", re.IGNORECASE)
_NO_REDIS = re.compile(r"requires Redis", re.IGNORECASE)
_SECRETS = re.compile(
    r"(?:\b(?:sk|pk|xai|gsk|AIza)[-_]?[A-Za-z0-9*_-]{8,}|\bBearer\s+\S+|(?<=://)[^/@\s]+(?=@))", re.IGNORECASE
)
_LONGEST = 300
_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)


_LONGEST_WAIT = 300.0
"""Seconds; whoever asks for more is asked again all the same."""


class NotFound(LettaError):
    """A 404 of which it is not known yet what is missing."""

    def __init__(self, detail: str) -> None:
        super().__init__(Kind.REJECTED, detail)


class NoRedis(LettaError):
    """Letta refused a background stream because it has no Redis: proof that it took nothing."""

    def __init__(self, detail: str) -> None:
        super().__init__(Kind.UNREACHABLE, detail)


def clean(text: object, *secrets: str | None) -> str:
    """``text`` as one short line without what looks like a key; ``secrets`` are removed wherever they occur."""
    line = " ".join(str(text).split())
    for secret in secrets:
        if secret and len(secret) > 3:
            line = line.replace(secret, "[redacted]")
    line = _SECRETS.sub("[redacted]", line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def classify_failure(error: object, stop_reason: str | None) -> tuple[Kind, str]:
    """Kind and detail of a failed run.

    Args:
        error: the ``error_message`` of a stream, or ``metadata.error`` of a run: an object, a text, or nothing.
        stop_reason: the last stop reason that was seen, if any.
    """
    by_reason = FAILURES.get(stop_reason or "", Kind.INTERNAL)
    if not isinstance(error, Mapping):
        text = str(error or f"run ended with {stop_reason or 'no reason'}")
        return (Kind.APPROVAL if _APPROVAL.search(text) else by_reason), clean(text)
    kind_name = str(error.get("error_type") or error.get("type") or "")
    message, detail = str(error.get("message") or ""), str(error.get("detail") or "")
    shown = clean(f"{kind_name}: {detail or message}")
    if kind_name.startswith("context_window") or "CONTEXT_WINDOW_EXCEEDED" in detail:
        return Kind.CONTEXT_FULL, shown
    if _APPROVAL.search(message) or _APPROVAL.search(detail):
        return Kind.APPROVAL, shown
    code = _CODE.match(detail)
    if kind_name.startswith("llm_"):
        named = _BY_TYPE.get(kind_name, Kind.MODEL)
        return (_BY_CODE.get(code[1], named) if code else named), shown
    if kind_name in _BY_TYPE:
        return _BY_TYPE[kind_name], shown
    if code and code[1] == "INVALID_ARGUMENT":
        return Kind.REJECTED, shown  # Letta itself refuses the request, for example an empty message
    return by_reason, shown


def from_exception(error: Exception, api_key: str | None = None) -> LettaError:
    """The :class:`LettaError` for anything that letta-client or its transport raises.

    ``delivery`` is NO only when the request cannot have reached Letta or Letta itself refused it; a failure that
    leaves the fate of a request open is UNKNOWN.
    """
    if isinstance(error, letta_client.APIStatusError):
        header = error.response.headers.get("retry-after", "")
        return from_answer(error.status_code, error.body, header, api_key)
    cause = error.__cause__ if isinstance(error, letta_client.APIConnectionError) else error
    # not the text of every transport error: an illegal header error repeats the key
    named = type(cause or error).__name__
    if isinstance(cause, httpx.ConnectError):
        named += f": {clean(cause, api_key)}"
    if isinstance(cause, _NOT_SENT):
        refused = isinstance(cause, httpx.ConnectError)
        return LettaError(Kind.UNREACHABLE, named, delivery=Delivery.NO, refused=refused)
    if isinstance(cause, httpx.HTTPError | httpx.StreamError | OSError) or isinstance(
        error, letta_client.APIConnectionError
    ):
        return LettaError(Kind.UNREACHABLE, named, delivery=Delivery.UNKNOWN)
    return LettaError(Kind.INTERNAL, named, delivery=Delivery.UNKNOWN)


def from_answer(status: int, body: object, retry_after_header: str, api_key: str | None) -> LettaError:
    """The :class:`LettaError` for an answer with an error status; ``body`` is its JSON, or else its text."""
    retry_after = _seconds(retry_after_header)
    fields: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    inner = fields.get("error")
    if isinstance(inner, Mapping) and (inner.get("type") or inner.get("error_type")):
        kind, shown = classify_failure(inner, "llm_api_error")
        if status == 402:
            kind = Kind.MODEL_REFUSED
        return LettaError(kind, clean(f"HTTP {status}: {shown}", api_key), retry_after=retry_after)
    text = _text(fields.get("detail", inner if inner is not None else body))
    detail = clean(f"HTTP {status}: {text}", api_key)
    if status == 404 and _speaks_as_letta(fields):
        return NotFound(detail)
    if status == 409:
        return _conflict(fields, text, detail, retry_after)
    if status == 503 and _NO_REDIS.search(text):
        return NoRedis(detail)
    kind, delivery = _by_status(status)
    return LettaError(kind, detail, delivery=delivery, retry_after=retry_after)


def _speaks_as_letta(fields: Mapping[str, Any]) -> bool:
    """Whether a 404 names something missing. "Not Found" alone is the answer to a path that is not served."""
    return isinstance(fields.get("detail"), str) and fields["detail"] != "Not Found"


def _by_status(status: int) -> tuple[Kind, Delivery]:
    if status in (401, 403):
        return Kind.BAD_KEY, Delivery.NO
    if status == 402:
        return Kind.MODEL_REFUSED, Delivery.NO
    if status == 429:
        return Kind.UNREACHABLE, Delivery.NO
    if status in (400, 405, 413, 415, 422):
        return Kind.REJECTED, Delivery.NO
    if status in (404, 408, 502, 503, 504):  # this 404 is a proxy's without Letta behind it
        return Kind.UNREACHABLE, Delivery.UNKNOWN
    return Kind.INTERNAL, Delivery.UNKNOWN


def _conflict(fields: Mapping[str, Any], text: str, detail: str, retry_after: float | None) -> LettaError:
    run_id = fields.get("run_id")
    if _APPROVAL.search(text):
        return LettaError(Kind.APPROVAL, detail)
    if isinstance(run_id, str) and run_id:
        return LettaError(Kind.BUSY, detail, run_id=RunID(run_id), retry_after=retry_after)
    if _BUSY.search(text):
        return LettaError(Kind.BUSY, detail, retry_after=retry_after)
    # the other conflicts are those of Letta's database: deadlock, row locked, lost update
    return LettaError(Kind.UNREACHABLE, detail, delivery=Delivery.UNKNOWN, retry_after=retry_after)


def _text(detail: object) -> str:
    """What a body says, without what it repeats of the request (validation errors echo the rejected input)."""
    if isinstance(detail, Mapping):
        return " ".join(str(detail[key]) for key in ("code", "message", "detail") if detail.get(key))
    if isinstance(detail, list):
        return "; ".join(f"{row.get('loc')} {row.get('msg')}" for row in detail if isinstance(row, Mapping))
    text = str(detail)
    if text.lstrip().startswith("<"):
        return "an HTML page"  # a proxy's
    return text.split(", 'input'")[0]


def _seconds(value: str) -> float | None:
    return min(float(value), _LONGEST_WAIT) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else None
