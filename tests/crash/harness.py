"""The bridge as a process of its own, to be killed, between fakes that live on."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession

import letta_bridge
from letta_bridge.matrix import envelope
from letta_bridge.testing.fake_homeserver import FakeHomeserver, Person, Rendered
from letta_bridge.testing.fake_letta import FakeLetta
from letta_bridge.testing.stack.process import ChildProcess, child_environment, free_port

from ..integration.world import DOMAIN, until
from .nursery import Forked, Nursery

ROOT = Path(letta_bridge.__file__).parents[1]


@dataclass
class CrashWorld:
    """Two fakes in this process, and a bridge in another. The agents answer with what they were told."""

    hs: FakeHomeserver
    letta: FakeLetta
    folder: Path
    database: str
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    child: ChildProcess | Forked | None = None
    others: list[ChildProcess | Forked] = field(default_factory=list)
    nursery: Nursery | None = None
    """Where processes come from, if not each from an interpreter of its own."""

    @property
    def log(self) -> Path:
        return self.folder / "bridge.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def config(self) -> dict[str, Any]:
        """The configuration as it is written for the next start."""
        data: dict[str, Any] = {
            "homeserver": {"url": self.hs.url, "domain": DOMAIN},
            "appservice": {
                "url": self.url,
                "port": self.port,
                "as_token": self.hs.appservice.as_token,
                "hs_token": self.hs.appservice.hs_token,
                "ping_interval": 1.0,
            },
            "letta": {"url": self.letta.url, "request_timeout": 1.0},
            "database": {"uri": self.database, "replica_id": "crashing", "lease_s": 0.6, "beat_s": 0.2},
            "permissions": {DOMAIN: "user"},
            "limits": {"messages_per_minute": 10_000},
            "conversation": {"first_event_s": 0.1},
            "shutdown": {"drain_s": 0.5},
        }
        for path, value in self.settings.items():
            node = data
            *above, last = path.split(".")
            for name in above:
                node = node.setdefault(name, {})
            node[last] = value
        return data

    def spawn(
        self, *, config: str | None = None, log: Path | None = None, at: str | None = None
    ) -> ChildProcess | Forked:
        """Start a bridge process and wait for nothing. ``config`` is the text of the file instead of the usual one;
        ``at`` is a place at which it ends or freezes itself, see :meth:`arm`.
        """
        path = self.folder / "config.yaml"
        path.write_text(json.dumps(self.config()) if config is None else config)
        path.chmod(0o600)
        self.arm(at)
        run = ["run", "-c", str(path)]
        if self.nursery is not None:
            child: ChildProcess | Forked = self.nursery.fork(
                run, cwd=self.folder, log=log or self.log, orders=self._orders, mark=self.mark
            )
        else:
            command = [sys.executable, "-m", "letta_bridge", *run]
            if at:
                armed = ["letta_bridge.testing.faultpoints", "--orders", str(self._orders), "--mark", str(self.mark)]
                command = [sys.executable, "-m", *armed, "--", *run]
            environment = child_environment({"PYTHONPATH": str(ROOT)}, without=("LETTA_BRIDGE",))
            child = ChildProcess("the bridge", command, log=log or self.log, env=environment, cwd=self.folder)
            child.start()
        self.others.append(child)
        return child

    async def start(self, *, at: str | None = None) -> None:
        """Start the bridge (again) and wait until it is ready."""
        self.hs.appservice_url = self.url
        self.child = self.spawn(at=at)
        await self.ready()

    # -- at a named place

    @property
    def _orders(self) -> Path:
        return self.folder / "orders"

    @property
    def mark(self) -> Path:
        """The file in which the process says at which place it ended or froze itself."""
        return self.folder / "mark"

    def arm(self, at: str | None) -> None:
        """Let the bridge end or freeze itself when it passes a place, counted from now: ``send.after:3:kill``.

        None disarms it. Only for a bridge of the nursery, or one that was started with ``at``.
        """
        self.mark.unlink(missing_ok=True)
        written = self.folder / "orders.new"
        written.write_text(at or "")
        written.rename(self._orders)

    @property
    def struck(self) -> str:
        """The place at which the bridge ended or froze itself; empty while it has not."""
        return self.mark.read_text().strip() if self.mark.exists() else ""

    async def died(self, seconds: float = 15.0) -> None:
        """Wait until the bridge has ended itself at the place for which it was armed."""
        assert self.child is not None
        child = self.child
        try:
            await until(lambda: self.struck and not child.running, seconds, why="the place was never passed")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{child.log_tail(40)}") from late

    async def froze(self, seconds: float = 15.0) -> None:
        """Wait until the bridge has frozen itself at the place for which it was armed."""
        assert self.child is not None
        child = self.child
        try:
            await until(lambda: self.struck and is_frozen(child.pid), seconds, why="the place was never passed")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{child.log_tail(40)}") from late

    def thaw(self) -> None:
        """SIGCONT."""
        assert self.child is not None
        self.child.send_signal(signal.SIGCONT)

    async def ready(self, seconds: float = 20.0) -> None:
        """Wait until the bridge that was started is ready."""
        child = self.child

        async def answers() -> bool:
            assert child is None or child.running, f"the bridge ended by itself\n{child.log_tail(40)}"
            return await self.health("ready") == 200

        try:
            await until(answers, seconds, why="not ready")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{child.log_tail(40) if child else ''}") from late

    async def health(self, which: str) -> int:
        """Status of a health route; 0 when nobody listens."""
        try:
            async with ClientSession() as session, session.get(f"{self.url}/_matrix/mau/{which}") as answer:
                return answer.status
        except (ClientError, OSError):
            return 0

    def kill(self) -> None:
        """End the bridge as by ``kill -9``."""
        if self.child is not None:
            assert self.child.running, f"the bridge ended by itself\n{self.child.log_tail(40)}"
            self.child.kill()

    async def terminate(self, seconds: float = 10.0) -> int:
        """SIGTERM; the exit code."""
        assert self.child is not None
        self.child.send_signal(signal.SIGTERM)
        return await self.child.wait_exit(seconds)

    async def ended(self, child: ChildProcess | Forked, seconds: float = 15.0) -> tuple[int, str]:
        """Exit code and output of a process that is to end by itself."""
        return await child.wait_exit(seconds), child.log.read_text()

    # -- what people see

    def puppet(self, agent: str) -> str:
        return f"@letta_{agent.removeprefix('agent-')}:{DOMAIN}"

    async def dm(self, person: Person, agent: str, text: str) -> str:
        """A DM in which ``text`` was answered."""
        room = await person.create_dm(self.puppet(agent), text=text)
        await self.answered(person, room, agent, text)
        return room

    async def answered(self, person: Person, room: str, agent: str, *texts: str, seconds: float = 20.0) -> None:
        """Wait until the person sees an answer to each of ``texts``, and hold that it is only one."""

        def all_there() -> bool:
            return all(self.answers(person, room, agent, text) for text in texts)

        try:
            await self.hs.wait_until(all_there, seconds, "an answer to every message")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.report(person, room, agent)}") from late
        for text in texts:
            found = self.answers(person, room, agent, text)
            assert len(found) == 1, f"{text!r} was answered {len(found)} times: {[str(one) for one in found]}"

    def report(self, person: Person, room: str, agent: str) -> str:
        """What happened, for a failed wait."""
        pushes = [(t.txn_id, t.attempt, t.status, [e["type"] for e in t.events]) for t in self.hs.transactions[-10:]]
        requests = [f"{r.status} {r.method} {r.path} {r.user_id}" for r in self.hs.requests[-20:]]
        parts = [*map(str, person.messages(room)), "turns:", *map(str, self.letta.turns(agent)), "pushes:"]
        parts += [*map(str, pushes), "requests:", *requests, self.child.log_tail(30) if self.child else ""]
        return "\n".join(parts)

    def answers(self, person: Person, room: str, agent: str, text: str) -> list[Rendered]:
        """The visible messages of the agent that answer ``text``."""
        mine = [m for m in person.messages(room) if m.sender == self.puppet(agent)]
        return [m for m in mine if f"<{text}>" in m.body]

    def heard(self, agent: str, room: str | None = None) -> list[str]:
        """What the agent was told in a room, in order."""
        read = [envelope.open_(text) for turn in self.letta.turns(agent) for text in turn.texts]
        return [message.body for message in read if room in (None, message.room.id)]


def is_frozen(pid: int) -> bool:
    """Whether a process was stopped by a signal (state T in ``/proc``)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def echo(texts: list[str]) -> str:
    """An answer that names every message that it answers."""
    return "re: " + " ".join(f"<{envelope.open_(text).body}>" for text in texts)


@asynccontextmanager
async def crash_world(
    folder: Path, database: str, *, redis: bool = False, nursery: Nursery | None = None
) -> AsyncIterator[CrashWorld]:
    async with FakeHomeserver(backoff_scale=0.02) as hs, FakeLetta(redis=redis) as letta:
        letta.reply = echo
        world = CrashWorld(hs, letta, folder, database, nursery=nursery)
        try:
            yield world
        finally:
            for child in world.others:
                child.kill()
