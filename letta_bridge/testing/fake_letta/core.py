"""What the parts of the fake share: the state, the orders of the test, and the tasks that are under way."""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp

from .faults import Fault, Gate
from .script import Behaviour, Hold, Reply, ToolFunction
from .state import Agent, Conversation, Database, Turn
from .wire import ApiError, missing, refuse


@dataclass(slots=True)
class Settings:
    """Times in seconds, as the real server has them; a test may change them while the fake runs."""

    ping_every: float = 20.0
    """Between the pings of a stream in which nothing happens."""
    silence: float = 1800.0
    """After which a stream in which nothing happens ends without a word."""
    lock_ttl: float = 300.0
    """For which a conversation stays locked by a run that does not free it."""
    lag: float = 0.0
    """Between the last event of a stream and the moment its run is recorded as over."""
    page_cap: int | None = None
    """The most agents in one answer, whatever was asked for: a server, or something before it, that cuts long lists."""
    webhook: str | None = None
    """URL that gets ``{"step_id": …}`` after every step."""


class Core:
    """The server behind the routes."""

    def __init__(self, *, redis: bool, password: str | None) -> None:
        self.redis = redis
        self.password = password
        self.db = Database()
        self.reply: Reply | None = None
        self.settings = Settings()
        self.turns: list[Turn] = []
        self.requests: list[tuple[str, str]] = []
        self.holds: list[Hold] = []
        self.faults: list[Fault] = []
        self.gates: list[Gate] = []
        self.functions: dict[str, ToolFunction] = {}
        self.crashes: list[BaseException] = []
        self._scripts: dict[str | None, deque[Behaviour]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # what is under way

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` apart from the request that ordered it. What it raises is raised when the fake stops."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crashes.append(error)

    def abandon(self) -> set[asyncio.Task[None]]:
        """Cancel everything that is under way, and say what has to be waited for."""
        for task in self._tasks:
            task.cancel()
        return set(self._tasks)

    # what the test ordered

    def add_script(self, agent_id: str | None, behaviours: tuple[Behaviour, ...]) -> None:
        self._scripts.setdefault(agent_id, deque()).extend(behaviours)

    def next_behaviour(self, agent_id: str) -> Behaviour | None:
        """What was ordered for the next turn of this agent, or of any."""
        for key in (agent_id, None):
            if queue := self._scripts.get(key):
                return queue.popleft()
        return None

    async def hang(self, agent_id: str) -> None:
        """Stay in every hold that is meant for this agent."""
        for hold in list(self.holds):
            if not hold.released and hold.agent_id in (agent_id, None):
                await hold.wait()

    def notify(self, step_id: str) -> None:
        """Tell the webhook of a step, as the server's environment variable STEP_COMPLETE_WEBHOOK does."""
        if self.settings.webhook is not None:
            self.spawn(self._post(self.settings.webhook, step_id))

    async def _post(self, url: str, step_id: str) -> None:
        try:
            async with aiohttp.ClientSession() as session, session.post(url, json={"step_id": step_id}):
                pass
        except aiohttp.ClientError:
            return  # the real server does not care either

    # looking things up

    def agent(self, agent_id: str, style: str = "long") -> Agent:
        """The agent, or one of the three texts of a 404."""
        agent = self.db.agents.get(agent_id)
        if agent is not None:
            return agent
        if style == "long":
            raise missing("Agent", agent_id)
        refuse(404, f"Agent with ID {agent_id} not found" if style == "id" else "Agent not found")

    def conversation(self, conversation_id: str) -> Conversation:
        conversation = self.db.conversations.get(conversation_id)
        if conversation is None:
            raise missing("Conversation", conversation_id, ", is_deleted=False")
        return conversation

    # locks of the conversations route, with Redis only

    def acquire(self, key: str, token: str) -> None:
        """Take the lock, or answer 409 with the run that holds it."""
        held = self.db.locks.get(key)
        if held is not None and time.monotonic() - held[1] < self.settings.lock_ttl:
            run_id = self.db.otid_runs.get(held[0])
            busy = f"Another request (run_id={run_id}) is currently being processed for this conversation."
            text = f"CONFLICT: Cannot send a new message: {busy} Please wait for it to complete."
            raise ApiError(409, {"detail": text, "run_id": run_id})
        self.db.locks[key] = (token, time.monotonic())
