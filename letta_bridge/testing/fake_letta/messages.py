"""Routes of messages: sending to an agent's main thread, histories, cancelling."""

from collections.abc import Sequence

from aiohttp import web

from . import shapes
from .agents import agent_id_of
from .core import Core
from .orders import read_order
from .rows import response_row, return_row
from .sending import respond, start
from .state import Row, Run, page
from .wire import Json, answer, body_of, choice, from_sdk, now, number, refuse

_DENIED = "The user cancelled the request, so the prior function call has been denied."


def items_of(rows: Sequence[Row], request: web.Request) -> list[Json]:
    """The items of some messages; the limit of a page counts messages, not items."""
    wanted = request.query.getall("include_return_message_types", [])
    items = [item for row in rows for item in row.items if not wanted or item["message_type"] in wanted]
    if any(not isinstance(item.get("content"), str | list | None) for item in items):
        # a message that was wrapped JSON around something else than text spoils every page it is on
        refuse(400, "2 validation errors for UserMessage\ncontent.str\n  Input should be a valid string")
    return items


def history_page(core: Core, request: web.Request, rows: Sequence[Row], whose: str) -> web.Response:
    """A page of a history whose order is that of storing: also the newest ones come in ascending order.

    An unknown cursor is 404.
    """
    edges: dict[str, int | None] = {"after": None, "before": None}
    for name in edges:
        cursor = request.query.get(name)
        if cursor is not None:
            row = core.db.rows.get(cursor)
            if row is None:
                refuse(404, f"No message found with id '{cursor}' for agent '{whose}'.")
            edges[name] = row.seq
    newest = choice(request, "order", ("desc", "asc")) == "desc"
    limit = number(request, "limit", 100)
    chosen = page(rows, above=edges["after"], below=edges["before"], limit=limit, descending=newest)
    return answer(items_of(chosen[::-1] if newest else chosen, request))


class MessageRoutes:
    """Handlers under ``/v1/agents/{id}/messages`` and ``/v1/messages/``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def routes(self) -> list[web.RouteDef]:
        base = "/v1/agents/{agent_id}/messages"
        return [
            web.get(base, self.listing),
            web.post(base, self.send),
            web.post(f"{base}/stream", self.stream),
            web.post(f"{base}/async", self.send_async),
            web.post(f"{base}/cancel", self.cancel),
            web.get("/v1/messages/", self.everything),
            web.get("/v1/messages/{message_id}", self.one),
        ]

    async def listing(self, request: web.Request) -> web.Response:
        agent = self._core.agent(agent_id_of(request), "short")
        wanted = request.query.get("conversation_id", "*")
        rows = self._core.db.history(agent_id=agent.id, conversation_id=None if wanted == "default" else wanted)
        return history_page(self._core, request, rows, agent.id)

    async def everything(self, request: web.Request) -> web.Response:
        """All messages of all agents, with a cursor: the cheap way to notice what happened elsewhere."""
        wanted = request.query.get("conversation_id", "*")
        rows = self._core.db.history(conversation_id=None if wanted == "default" else wanted)
        return history_page(self._core, request, rows, "None")

    async def one(self, request: web.Request) -> web.Response:
        message_id = request.match_info["message_id"]
        row = self._core.db.rows.get(message_id)
        if row is None or row.deleted:
            refuse(404, f"Message with id {message_id} not found")
        return answer(row.items)

    async def send(self, request: web.Request) -> web.StreamResponse:
        agent_id = agent_id_of(request)
        order, _ = await read_order(request, streaming=False)
        if order.streaming and not from_sdk(request):
            refuse(422, "streaming=true is only supported for SDK v1.0+ clients.")
        order.agents_route = True
        agent = self._core.agent(agent_id, "id")
        return await respond(self._core, request, agent, None, order, "send_message", lock_key=None)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        agent_id = agent_id_of(request)
        order, body = await read_order(request, streaming=True)
        order.streaming = True
        order.tokens = bool(body.get("stream_tokens"))
        order.background = bool(body.get("background"))
        order.pings = bool(body.get("include_pings", True))
        agent = self._core.agent(agent_id, "id")
        return await respond(self._core, request, agent, None, order, "send_message_streaming", lock_key=None)

    async def send_async(self, request: web.Request) -> web.Response:
        agent_id = agent_id_of(request)
        order, _ = await read_order(request, streaming=False)
        order.streaming = order.tokens = order.pings = order.background = False
        agent = self._core.agent(agent_id, "short")
        execution, _task = start(self._core, agent, None, order, "send_message_async")
        return answer(shapes.run_json(execution.run_))

    async def cancel(self, request: web.Request) -> web.Response:
        agent_id = agent_id_of(request)
        body = await body_of(request, optional=True)
        run_ids = body.get("run_ids")
        if not run_ids:
            latest = self._core.db.latest_run.get(agent_id) if self._core.redis else None
            run_ids = [latest] if latest is not None else active_runs(self._core, agent_id=agent_id)
        if not run_ids:
            refuse(409, f"CONFLICT: No active runs to cancel for agent {agent_id}")
        return answer({run_id: cancel_run(self._core, run_id) for run_id in run_ids})


def active_runs(core: Core, *, agent_id: str | None = None, conversation_id: str | None = None) -> list[str]:
    """The ids of the runs that are not over, newest first."""
    runs = [
        run
        for run in core.db.runs.values()
        if run.active
        and (agent_id is None or run.agent_id == agent_id)
        and (conversation_id is None or run.conversation_id == conversation_id)
    ]
    return [run.id for run in sorted(runs, key=lambda run: -run.seq)]


def cancel_run(core: Core, run_id: str) -> str:
    """Cancel one run, and say what the answer says of it.

    A run that is over stays as it is, but the answer is the same. Whatever run is cancelled, an approval that is
    pending in the agent's main thread is denied. The lock of the run's conversation is freed, the main thread's not.
    """
    run = core.db.runs.get(run_id)
    if run is None:
        return "failed"
    if run.stop_reason not in (None, "requires_approval"):
        return "cancelled"
    agent = core.db.agents[run.agent_id]
    run.status = run.stop_reason = "cancelled"
    run.completed_at = now()
    agent.last_stop_reason = "cancelled"
    core.db.release(run.conversation_id)
    pending = core.db.pending(agent.message_ids)
    if pending is not None and pending.call is not None:
        _deny(core, agent.message_ids, run, pending)
    return "cancelled"


def _deny(core: Core, context: list[str], run: Run, pending: Row) -> None:
    assert pending.call is not None
    call = pending.call
    decision = {"type": "approval", "approve": False, "tool_call_id": call["tool_call_id"], "reason": _DENIED}
    text = f"Error: request to call tool denied. User reason: {_DENIED}"
    rows = [response_row(run, [decision]), return_row(run, call["step"], call, False, text)]
    for row in rows:
        row.conversation_id = None
    core.db.store(rows, context)
