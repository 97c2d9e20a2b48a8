"""The fake as tests use it."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from .agents import DEFAULT_MODEL, AgentRoutes, add_agent, change_agent
from .conversations import ConversationRoutes, add_conversation
from .core import Core, Settings
from .faults import LATE, Fault, Gate, How, cut
from .messages import MessageRoutes
from .misc import MiscRoutes
from .orders import Order
from .rows import line_row
from .runs import RunRoutes
from .script import Behaviour, Hold, Reply, ToolFunction
from .sending import start
from .state import BASE_TOOLS, Agent, Block, Database, Removed, Turn
from .wire import ApiError, Json, answer, new_id, now

_OPEN_PATHS = frozenset({"/v1/health", "/v1/health/"})
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeLetta:
    """An imitation of the Letta V1 server 0.16.8 over real HTTP and server-sent events, on the loopback.

    It is meant to be no kinder than the real one: what the real one loses, repeats or leaves hanging, it does too.
    Not imitated: how long things take, retries towards the model, Letta Cloud, files, groups, archival memory.

    Args:
        redis: whether the server has Redis: background streams, locks, replay by otid.
        password: what ``--secure`` asks for; ``None`` accepts every caller.
    """

    def __init__(self, redis: bool = False, password: str | None = None) -> None:
        self._core = Core(redis=redis, password=password)
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._port = 0

    # life

    @property
    def url(self) -> str:
        """The base URL; it stays the same over restarts."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def redis(self) -> bool:
        return self._core.redis

    @property
    def settings(self) -> Settings:
        """Times and the webhook."""
        return self._core.settings

    async def start(self) -> None:
        """Listen, on the same port as before when there was one. What was stored is still there."""
        await self._clear()
        app = web.Application(middlewares=[self._guard], client_max_size=64 * 1024**2)
        core = self._core
        for part in (AgentRoutes, MessageRoutes, ConversationRoutes, RunRoutes, MiscRoutes):
            app.add_routes(part(core).routes())
        # a handler ends with its client; what it started goes on
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1, access_log=None)
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        assert self._runner.server is not None
        self._server = await loop.create_server(
            self._runner.server, "127.0.0.1", self._port, family=socket.AF_INET, reuse_address=True
        )
        self._port = self._server.sockets[0].getsockname()[1]

    def kill(self) -> None:
        """Die as by ``kill -9``: every connection breaks, and what runs is lost, until :meth:`start`.

        Unfinished runs stay so for ever, their user messages are gone, their locks stay for ``settings.lock_ttl``.
        """
        self._core.abandon()
        if self._server is not None:
            self._server.close()
        if self._runner is not None and self._runner.server is not None:
            for connection in self._runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()

    async def stop(self) -> None:
        """Stop the server: with what runs it does as :meth:`kill`. Raises what failed inside the fake."""
        await self._clear()
        crashes, self._core.crashes = self._core.crashes, []
        if crashes:
            raise crashes[0]

    async def _clear(self) -> None:
        """Die, and wait until nothing is left."""
        waiting = self._core.abandon()
        self.kill()
        if waiting:
            await asyncio.wait(waiting)
        if self._server is not None:
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # agents and what belongs to them

    @property
    def agents(self) -> Mapping[str, Agent]:
        """The agents by id."""
        return self._core.db.agents

    def add_agent(
        self,
        name: str,
        *,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        description: str | None = "",
        blocks: Mapping[str, str] | None = None,
        tools: Sequence[str] = (),
        sleeptime: bool = False,
        model: str = DEFAULT_MODEL,
        agent_type: str = "letta_v1_agent",
        agent_id: str | None = None,
        hidden: bool = False,
    ) -> str:
        """Create an agent with the base tools and ``tools``; returns its id. Any name goes, also one twice.

        ``sleeptime`` adds a companion called ``<name>-sleeptime``. ``agent_id`` is for one that was there before.
        ``hidden`` agents exist and answer, but no listing shows them.
        """
        made = [Block(label, value) for label, value in (blocks or {"persona": "I am an agent."}).items()]
        agent = add_agent(
            self._core,
            name,
            tags=list(tags),
            metadata=dict(metadata or {}),
            description=description,
            blocks=made,
            tools=[*BASE_TOOLS, *tools],
            sleeptime=sleeptime,
            model=model,
            agent_type=agent_type,
            agent_id=agent_id,
            hidden=hidden or None,
        )
        return agent.id

    def remove_agent(self, agent_id: str) -> Removed:
        """Delete an agent with all that belongs to it; what is returned can be put back."""
        return self._core.db.remove_agent(self._core.db.agents[agent_id])

    def restore_agent(self, removed: Removed) -> None:
        """Put an agent back under its old id, with its history."""
        self._core.db.restore_agent(removed)

    def hide_agent(self, agent_id: str, hidden: bool = True) -> None:
        """Leave an agent out of every listing, though it is there; or show it again."""
        self._core.db.agents[agent_id].hidden = hidden or None

    def rename_agent(self, agent_id: str, name: str) -> None:
        """Give an agent another name."""
        self.change_agent(agent_id, name=name)

    def change_agent(self, agent_id: str, **fields: Any) -> None:
        """Change name, description, tags or metadata."""
        change_agent(self._core.db.agents[agent_id], fields)

    def require_approval(self, agent_id: str, tool: str) -> None:
        """Let a tool of the agent wait for an approval from now on."""
        self._core.db.agents[agent_id].needs_approval.add(tool)

    def set_block(self, agent_id: str, label: str, value: str) -> None:
        """Change a memory block behind everybody's back."""
        block = self._core.db.agents[agent_id].block(label)
        if block is None:
            raise KeyError(label)
        block.value = value

    def add_conversation(self, agent_id: str, summary: str | None = None) -> str:
        """Create a conversation; returns its id."""
        return add_conversation(self._core, self._core.db.agents[agent_id], summary).id

    def conversations(self, agent_id: str) -> list[str]:
        """The ids of an agent's conversations, oldest first."""
        return [one.id for one in self._core.db.conversations.values() if one.agent_id == agent_id]

    def history(self, agent_id: str, conversation_id: str = "default") -> list[Json]:
        """The stored items of a thread in the order of storing, without the system prompt."""
        thread = None if conversation_id == "default" else conversation_id
        rows = self._core.db.history(agent_id=agent_id, conversation_id=thread)
        return [item for row in rows if row.role != "system" or row.run_id for item in row.items]

    def seed_history(
        self,
        agent_id: str,
        lines: Sequence[tuple[str, str]],
        conversation_id: str | None = None,
        *,
        at: datetime | None = None,
    ) -> list[str]:
        """Add lines (``user`` or ``assistant``, and the text) to a thread without asking the model; their ids."""
        db, agent = self._core.db, self._core.db.agents[agent_id]
        context = db.context(agent, None if conversation_id is None else db.conversations[conversation_id])
        made = [line_row(agent_id, conversation_id, role, text, at or now()) for role, text in lines]
        db.store(made, context)
        return [row.id for row in made]

    def wipe(self) -> None:
        """An empty database behind the same URL: another instance. Turns stay counted."""
        self.swap_database()

    def swap_database(self, other: Database | None = None) -> Database:
        """Put another database behind the same URL, a new and empty one by default; returns the one before."""
        self._core.abandon()
        before, self._core.db = self._core.db, other or Database()
        return before

    def empty(self) -> None:
        """Delete every agent: the same instance, with nothing in it."""
        for agent in list(self._core.db.agents.values()):
            if agent.id in self._core.db.agents:
                self._core.db.remove_agent(agent)

    # the model

    @property
    def reply(self) -> Reply | None:
        return self._core.reply

    @reply.setter
    def reply(self, reply: Reply | None) -> None:
        self._core.reply = reply

    def script(self, agent_id: str | None, *behaviours: Behaviour) -> None:
        """How the next turns of an agent (``None``: of any agent) answer, one behaviour each, then as before."""
        self._core.add_script(agent_id, behaviours)

    def tool(self, name: str, function: ToolFunction) -> None:
        """What a tool of the server does when the model calls it."""
        self._core.functions[name] = function

    def hold(self, agent_id: str | None = None) -> Hold:
        """Let the model hang for an agent (``None``: for all) until the hold is released."""
        hold = Hold(agent_id)
        self._core.holds.append(hold)
        return hold

    async def outside_turn(
        self, agent_id: str, text: str, *, conversation_id: str = "default", role: str = "user"
    ) -> str:
        """A turn that another client ordered, run to its end; returns its run id.

        An agent that writes to another one is ``role="system"`` with Letta's text
        ``[Incoming message from agent with ID '…' - your response will be delivered to the sender] …``.
        """
        core = self._core
        conversation = None if conversation_id == "default" else core.db.conversations[conversation_id]
        main = conversation is None
        order = Order([{"role": role, "content": text}], streaming=not main, agents_route=main)
        agent = core.db.agents[agent_id]
        kind = "send_message" if main else "send_conversation_message"
        lock_key, token = None, new_id("request")
        if conversation is not None and core.redis:  # the only route that leads into a conversation locks it
            lock_key = conversation.id
            core.acquire(lock_key, token)
        execution, task = start(core, agent, conversation, order, kind, lock_key=lock_key)
        if lock_key is not None:
            core.db.otid_runs[token] = execution.run_.id
        await asyncio.shield(task)
        return execution.run_.id

    # what happened

    def turns(self, agent_id: str | None = None) -> list[Turn]:
        """The turns that the model really ran, in the order of their beginning."""
        return [turn for turn in self._core.turns if agent_id in (None, turn.agent_id)]

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of every request that came in."""
        return self._core.requests

    # faults

    def fail_next(
        self,
        path_regex: str,
        how: How,
        times: int = 1,
        after_processing: bool = False,
        *,
        method: str | None = None,
        after_events: int | None = None,
        skip: int = 0,
    ) -> Fault:
        """Let the next requests to a path fail.

        Args:
            path_regex: searched in the path, without the query.
            how: an HTTP status, ``disconnect``, ``hang``, or ``truncate`` (half an answer, then the end).
            times: how many requests.
            after_processing: the server does the work (a turn to its end), but the client never learns.
            method: only requests of this method.
            after_events: a stream breaks off after so many events; the run goes on.
            skip: how many requests pass before.
        """
        fault = Fault(re.compile(path_regex), how, times, method, after_processing, after_events, skip)
        self._core.faults.append(fault)
        return fault

    def hold_next(self, path_regex: str, *, method: str | None = None) -> Hold:
        """Let the next request to a path wait, before the server works on it, until the hold is released."""
        hold = Hold(None)
        self._core.gates.append(Gate(re.compile(path_regex), method, hold))
        return hold

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """What happens to every request: it is counted, may fail on order, must have the password, gets its errors."""
        self._core.requests.append((request.method, request.path))
        for gate in self._core.gates:
            await gate.pass_(request)
        fault = next((fault for fault in self._core.faults if fault.claims(request)), None)
        if fault is not None and not fault.late:
            return await fault.strike(request)
        LATE.set(fault)
        response = await self._handle(request, handler)
        if fault is not None and fault.how == "truncate" and not response.prepared:
            return await cut(request, response)
        if fault is not None and fault.after_processing and not response.prepared:
            return await fault.strike(request)
        return response

    async def _handle(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if not self._authorised(request):
            return answer({"detail": "Unauthorized"}, 401)
        try:
            return await handler(request)
        except ApiError as error:
            return answer(error.body, error.status)
        except web.HTTPNotFound:
            return await self._no_route(request)
        except web.HTTPMethodNotAllowed:
            return answer({"detail": "Method Not Allowed"}, 405)
        except Exception as error:  # noqa: BLE001  boundary of the server: a fault of the fake, raised by stop()
            self._core.crashes.append(error)
            return answer({"detail": "An unknown error occurred"}, 500)

    async def _no_route(self, request: web.Request) -> web.StreamResponse:
        """404, or a redirect when only the slash at the end is wrong."""
        path = request.path.removesuffix("/") if request.path.endswith("/") else f"{request.path}/"
        found = await request.app.router.resolve(request.clone(rel_url=request.rel_url.with_path(path)))
        if found.http_exception is not None:
            return answer({"detail": "Not Found"}, 404)
        target = request.url.with_path(path).with_query(request.query)
        return web.Response(status=307, headers={"Location": str(target)})

    def _authorised(self, request: web.Request) -> bool:
        password = self._core.password
        if password is None or request.path in _OPEN_PATHS:
            return True
        bearer = request.headers.get("Authorization") == f"Bearer {password}"
        return bearer or request.headers.get("X-BARE-PASSWORD") == f"password {password}"
