"""What travels: JSON answers, Letta's shapes of error, and server-sent events."""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any, NoReturn

from aiohttp import web

Json = dict[str, Any]

ORGANISATION = "org-00000000-0000-4000-8000-000000000000"
USER = "user-00000000-0000-4000-8000-000000000000"
NO_REDIS = (
    "Background streaming requires Redis to be running. Please ensure Redis is properly configured. "
    "LETTA_REDIS_HOST: None, LETTA_REDIS_PORT: 6379"
)


class ApiError(Exception):
    """A refusal, as the client is to see it."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body


def dumps(value: Any) -> str:
    """JSON as the real server writes it: no spaces, no escapes that are not needed."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def answer(value: Any, status: int = 200) -> web.Response:
    """A JSON answer. Lone surrogates, which JSON may carry, are replaced."""
    return web.Response(body=dumps(value).encode("utf-8", "replace"), status=status, content_type="application/json")


def refuse(status: int, detail: Any) -> NoReturn:
    """Raise the usual ``{"detail": …}``."""
    raise ApiError(status, {"detail": detail})


def missing(kind: str, identifier: str, tail: str = "") -> ApiError:
    """The long one of the three texts of a 404, with the caller's whole identity in it."""
    actor = f"id='{USER}' organization_id='{ORGANISATION}' name='default_user' is_deleted=False"
    return ApiError(
        404,
        {"detail": f"{kind} not found with id='['{identifier}']', access level in ['read'] for actor='{actor}'{tail}"},
    )


def invalid(kind: str, loc: tuple[Any, ...], message: str, value: Any, **more: Any) -> ApiError:
    """A 422 for a malformed request: the ``detail`` is a string that looks like a list."""
    problem = {"type": kind, "loc": loc, "msg": message, "input": value}
    return ApiError(422, {"trace_id": "", "detail": str([problem]), **more})


async def body_of(request: web.Request, *, optional: bool = False) -> Json:
    """The request's JSON object; 422 for anything else."""
    raw = await request.read()
    if not raw and optional:
        return {}
    if "json" not in request.content_type:
        text = raw.decode("utf-8", "replace")
        raise invalid("model_attributes_type", ("body",), "Input should be a valid dictionary", text)
    try:
        value = json.loads(raw)
    except ValueError:
        raise invalid("json_invalid", ("body", 1), "JSON decode error", {}) from None
    if value is None and optional:
        return {}
    if not isinstance(value, dict):
        raise invalid("model_attributes_type", ("body",), "Input should be a valid dictionary", value)
    return value


def number(request: web.Request, name: str, default: int) -> int:
    """An integer of the query; 422 when it is none."""
    raw = request.query.get(name)
    if raw is None:
        return default
    try:
        return int(raw)
    except ValueError:
        raise invalid("int_parsing", ("query", name), "Input should be a valid integer", raw) from None


def choice(request: web.Request, name: str, allowed: tuple[str, ...]) -> str:
    """One of ``allowed`` from the query, the first by default; 422 for anything else."""
    raw = request.query.get(name, allowed[0])
    if raw not in allowed:
        wanted = ", ".join(f"'{word}'" for word in allowed[:-1]) + f" or '{allowed[-1]}'"
        raise invalid("literal_error", ("query", name), f"Input should be {wanted}", raw)
    return raw


def new_id(kind: str) -> str:
    """A fresh id such as ``agent-<uuid4>``."""
    return f"{kind}-{uuid.uuid4()}"


def now() -> datetime:
    return datetime.now(UTC)


def moment(when: datetime | None, *, zone: bool = True) -> str | None:
    """A timestamp with microseconds; Letta leaves out the zone in ``completed_at``."""
    if when is None:
        return None
    return when.strftime("%Y-%m-%dT%H:%M:%S.%f") + ("Z" if zone else "")


def second(when: datetime) -> str:
    """The date of a message: whole seconds only."""
    return when.strftime("%Y-%m-%dT%H:%M:%S+00:00")


def from_sdk(request: web.Request) -> bool:
    """Whether the caller is letta-client 1.x (or sends no User-Agent), by the rule of the real server."""
    if request.headers.get("X-Stainless-Package-Version"):
        return True
    agent = request.headers.get("User-Agent")
    if not agent:
        return True
    name, _, version = agent.removeprefix("@letta-ai/").partition("/")
    major = version.split(".")[0]
    return name == "letta-client" and "." in version and major.isdigit() and int(major) >= 1


def event(payload: Json) -> str:
    """One server-sent event; errors carry an ``event:`` line as well."""
    head = "event: error\n" if payload.get("message_type") == "error_message" else ""
    return f"{head}data: {dumps(payload)}\n\n"


DONE = "data: [DONE]\n\n"
# the real server writes this one by another hand, with spaces
CANCELLED = 'data: {"message_type": "stop_reason", "stop_reason": "cancelled"}\n\n'


def ping(run_id: str, seq_id: int | None = None) -> Json:
    return {
        "id": new_id("ping"),
        "date": second(now()),
        "name": None,
        "message_type": "ping",
        "otid": None,
        "sender_id": None,
        "step_id": None,
        "is_err": None,
        "seq_id": seq_id,
        "run_id": run_id,
    }


class EventLog:
    """The events of one run, to be followed by any number of readers, now or later.

    Args:
        numbered: whether events carry a ``seq_id`` (background runs, which the real server keeps in Redis).
    """

    def __init__(self, *, numbered: bool) -> None:
        self.numbered = numbered
        self.closed = False
        self._events: list[str] = []
        self._changed = asyncio.Event()

    def append(self, payload: Json | str) -> None:
        """Add an event; nothing can follow a closed log."""
        if self.closed:
            return
        if isinstance(payload, dict):
            if self.numbered and "seq_id" in payload:
                payload = {**payload, "seq_id": len(self._events) + 1}
            payload = event(payload)
        self._events.append(payload)
        self._wake()

    def close(self) -> None:
        """Say that no event will come any more."""
        self.closed = True
        self._wake()

    async def finished(self) -> None:
        """Wait until the log is closed."""
        while not self.closed:
            await self._changed.wait()

    async def follow(
        self, run_id: str, *, after: int = 0, ping_every: float | None, silence: float
    ) -> AsyncGenerator[str, None]:
        """Yield the events with a number above ``after``, and a ping when none came for ``ping_every`` seconds.

        Ends when the log is closed, or without a word after ``silence`` seconds without an event.
        """
        loop = asyncio.get_running_loop()
        at = after
        last = loop.time()
        while True:
            while at < len(self._events):
                last = loop.time()
                yield self._events[at]
                at += 1
            if self.closed:
                return
            try:
                async with asyncio.timeout(ping_every):
                    await self._changed.wait()
            except TimeoutError:
                if loop.time() - last > silence:
                    return
                yield event(ping(run_id, at if self.numbered else None))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
