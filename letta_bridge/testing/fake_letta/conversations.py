"""Routes of conversations: sending with a lock, re-attaching, cancelling, recompiling, and their life."""

import re

from aiohttp import web

from . import shapes
from .core import Core
from .engine import recompile
from .messages import active_runs, cancel_run, history_page, items_of
from .orders import read_order
from .rows import system_row
from .sending import replay, respond
from .state import Agent, Conversation, Row, Run
from .wire import NO_REDIS, answer, body_of, choice, invalid, missing, now, number, refuse

_UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_PATTERN = f"^(default|conv-{_UUID4}|agent-{_UUID4})$"
_ANY = re.compile(_PATTERN)


def add_conversation(core: Core, agent: Agent, summary: str | None) -> Conversation:
    """Create a conversation; its memory is frozen from now on."""
    conversation = Conversation(agent.id, summary, agent.memory())
    core.db.conversations[conversation.id] = conversation
    row = system_row(agent.id, conversation.id, "")
    recompile(row, agent, conversation.memory)
    core.db.store([row], conversation.context)
    return conversation


def _thread_id(request: web.Request) -> str:
    """A conversation id, ``default`` or (deprecated) an agent id."""
    raw = request.match_info["conversation_id"]
    if not _ANY.match(raw):
        loc = ("path", "conversation_id")
        raise invalid("string_pattern_mismatch", loc, f"String should match pattern '{_PATTERN}'", raw)
    return raw


def _conversation_id(request: web.Request) -> str:
    """A conversation id proper: the main thread has no record of its own."""
    raw = request.match_info["conversation_id"]
    if len(raw) < 41:
        loc = ("path", "conversation_id")
        raise invalid("string_too_short", loc, "String should have at least 41 characters", raw)
    return raw


def _main_of(thread: str, agent_id: str | None) -> str | None:
    """The agent whose main thread is meant, if it is one."""
    if thread == "default" and agent_id:
        return agent_id
    return thread if thread.startswith("agent-") else None


class ConversationRoutes:
    """Handlers under ``/v1/conversations/``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def routes(self) -> list[web.RouteDef]:
        one = "/v1/conversations/{conversation_id}"
        return [
            web.get("/v1/conversations/", self.listing),
            web.post("/v1/conversations/", self.create),
            web.get(one, self.retrieve),
            web.patch(one, self.update),
            web.delete(one, self.delete),
            web.get(f"{one}/messages", self.history),
            web.post(f"{one}/messages", self.send),
            web.post(f"{one}/stream", self.attach),
            web.post(f"{one}/cancel", self.cancel),
            web.post(f"{one}/recompile", self.recompile),
        ]

    async def listing(self, request: web.Request) -> web.Response:
        core, query = self._core, request.query
        found = [
            one
            for one in core.db.conversations.values()
            if ("agent_id" not in query or one.agent_id == query["agent_id"])
            and ("summary_search" not in query or query["summary_search"] in (one.summary or ""))
        ]
        newest = choice(request, "order", ("desc", "asc")) == "desc"
        field = choice(request, "order_by", ("created_at", "last_run_completion", "last_message_at"))
        if newest:
            found.reverse()
        if field != "created_at":
            spoken = [one for one in found if one.last_message_at is not None]
            spoken.sort(key=lambda one: one.last_message_at or now(), reverse=newest)
            # those never written to come last, and the other way round
            found = spoken + [one for one in reversed(found) if one.last_message_at is None]
        if "after" in query:
            ids = [one.id for one in found]
            if query["after"] not in core.db.conversations:
                raise missing("Conversation", query["after"])
            found = found[ids.index(query["after"]) + 1 :] if query["after"] in ids else found
        return answer([shapes.conversation_json(one) for one in found[: number(request, "limit", 50)]])

    async def create(self, request: web.Request) -> web.Response:
        body = await body_of(request, optional=True)
        agent_id = request.query.get("agent_id")
        if agent_id is None:
            raise invalid("missing", ("query", "agent_id"), "Field required", None)
        conversation = add_conversation(self._core, self._core.agent(agent_id, "short"), body.get("summary"))
        conversation.model, conversation.model_settings = body.get("model"), body.get("model_settings")
        return answer(shapes.conversation_json(conversation))

    async def retrieve(self, request: web.Request) -> web.Response:
        return answer(shapes.conversation_json(self._core.conversation(_conversation_id(request)), context=True))

    async def update(self, request: web.Request) -> web.Response:
        conversation_id = _conversation_id(request)
        body = await body_of(request)
        conversation = self._core.conversation(conversation_id)
        for key in ("summary", "model", "model_settings"):
            if key in body:
                setattr(conversation, key, body[key])
        conversation.updated_at = now()
        return answer(shapes.conversation_json(conversation))

    async def delete(self, request: web.Request) -> web.Response:
        self._core.db.remove_conversation(self._core.conversation(_conversation_id(request)))
        return answer(None)

    async def history(self, request: web.Request) -> web.Response:
        thread = _thread_id(request)
        core = self._core
        main = _main_of(thread, request.query.get("agent_id"))
        if main is not None:
            agent = core.agent(main, "short")
            rows = core.db.history(agent_id=agent.id, conversation_id=None)
            return history_page(core, request, rows, agent.id)
        # of an unknown or deleted conversation there is nothing, not a 404
        rows = core.db.history(conversation_id=thread)
        newest = choice(request, "order", ("desc", "asc")) == "desc"
        after, before = self._place(request, rows, "after"), self._place(request, rows, "before")
        rows = [
            row for row in rows if (after is None or row.position > after) and (before is None or row.position < before)
        ]
        rows.sort(key=lambda row: (-row.position if newest else row.position, row.seq))
        return answer(items_of(rows[: number(request, "limit", 100)], request))

    def _place(self, request: web.Request, rows: list[Row], name: str) -> int | None:
        """The place of a cursor; an unknown or foreign one is ignored."""
        cursor = request.query.get(name)
        return next((row.position for row in rows if row.id == cursor), None)

    async def send(self, request: web.Request) -> web.StreamResponse:
        thread = _thread_id(request)
        order, body = await read_order(request, streaming=True)
        order.tracked = order.streaming
        core = self._core
        main = _main_of(thread, body.get("agent_id"))
        if main is not None:
            agent = core.agent(main, "id")
            return await respond(core, request, agent, None, order, "send_message", lock_key=agent.id)
        conversation = core.conversation(thread)
        conversation.last_message_at = conversation.updated_at = now()
        agent = core.agent(conversation.agent_id)
        return await respond(
            core, request, agent, conversation, order, "send_conversation_message", lock_key=conversation.id
        )

    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Follow a run again. The conversation of the path is not looked at when a run or an otid is given."""
        thread = _thread_id(request)
        body = await body_of(request, optional=True)
        core = self._core
        if not core.redis:
            refuse(503, NO_REDIS)
        run_id, otid = body.get("run_id"), body.get("otid")
        if run_id is None and otid is not None:
            run_id = core.db.otid_runs.get(otid)
            if run_id is None:
                refuse(404, f"No run found for otid={otid}. The run may have expired or never existed.")
        if run_id is not None:
            run = core.db.runs.get(run_id)
            if run is None:
                raise missing("Run", run_id)
        else:
            run = self._newest_active(_main_of(thread, body.get("agent_id")), thread)
        after, pings = int(body.get("starting_after") or 0), body.get("include_pings") is not False
        return await replay(core, request, run, pings=pings, after=after)

    def _newest_active(self, main: str | None, thread: str) -> Run:
        if main is not None:
            active = active_runs(self._core, agent_id=main)
        else:
            active = active_runs(self._core, conversation_id=thread)
        if not active:
            refuse(400, "INVALID_ARGUMENT: No active runs found for this conversation.")
        run = self._core.db.runs[active[0]]
        if not run.background:
            refuse(400, "INVALID_ARGUMENT: Run was not created in background mode, so it cannot be retrieved.")
        return run

    async def cancel(self, request: web.Request) -> web.Response:
        thread = _thread_id(request)
        core = self._core
        main = _main_of(thread, request.query.get("agent_id"))
        if main is not None:
            run_ids = active_runs(core, agent_id=main)  # of all the agent's conversations
        else:
            run_ids = active_runs(core, conversation_id=core.conversation(thread).id)
        if not run_ids:
            refuse(409, f"CONFLICT: No active runs to cancel for conversation {thread}")
        return answer({run_id: cancel_run(core, run_id) for run_id in run_ids})

    async def recompile(self, request: web.Request) -> web.Response:
        thread = _thread_id(request)
        conversation = self._core.conversation(thread)
        agent = self._core.agent(conversation.agent_id)
        conversation.memory = agent.memory()
        head = self._core.db.rows.get(conversation.context[0]) if conversation.context else None
        return answer(recompile(head, agent, conversation.memory))
