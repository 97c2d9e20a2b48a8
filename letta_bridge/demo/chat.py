"""The demo on a terminal: a small chat as the demo's person, with answers as they are written."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from letta_bridge.demo.world import Agent, World
from letta_bridge.ids import MXID, EventID, RoomID
from letta_bridge.testing.person import MatrixRefusal, Message

_HELP = "/agents lists them, /to NAME (or a number) changes to another one, !stop ends an answer, /quit leaves."
_CLEAR_LINE = "\r\x1b[2K"
_LOOK_S = 0.1
_SETTLED_S = 0.7
_UNFINISHED = " …"
"""How the bridge ends the text of an answer that is still being written."""


class Chat:
    """Reads lines from the terminal and shows what the agents say, until ``/quit``, end of input or Ctrl-C."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._rest = b""
        self._rooms: dict[MXID, RoomID] = {}
        self._current: Agent = world.agents[0]
        self._shown: dict[EventID, str] = {}
        self._open: EventID | None = None
        self._typing = False
        self._changed = 0.0

    async def run(self) -> None:
        """Chat until the person has enough."""
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._read)
        viewer = asyncio.create_task(self._view())
        try:
            self._welcome()
            while (line := await self._lines.get()) is not None and line != "/quit":
                await self._handle(line)
        finally:
            viewer.cancel()
            loop.remove_reader(sys.stdin.fileno())

    def _read(self) -> None:
        data = os.read(sys.stdin.fileno(), 65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._lines.put_nowait(line.decode(errors="replace").strip())
        if not data:
            self._lines.put_nowait(None)

    def _welcome(self) -> None:
        world = self._world
        print(
            f"\nYou are {world.account.user_id}. The model behind the agents: {world.provider.title} ({world.model})."
        )
        if world.provider.scripted:
            print("It is no language model: it repeats what you say. #slow 40 0.3 makes it answer slowly; for a real")
            print("model set OPENAI_API_KEY (and OPENAI_API_BASE) or OLLAMA_BASE_URL and start the demo again.")
        print("\nThe same in Element (Desktop, or Web in a browser on this machine), while the demo runs:")
        print(f"  homeserver {world.homeserver_url}   user {world.account.user_id.partition(':')[0][1:]}", end="")
        print(f"   password {world.account.password}")
        print("  The agents cannot read encrypted rooms yet: accept the invitations, or start chats unencrypted.\n")
        self._list()
        print(_HELP)
        self._prompt()

    def _list(self) -> None:
        for number, agent in enumerate(self._world.agents, 1):
            mark = "→" if agent is self._current else " "
            print(f" {mark} {number}  {agent.name:8} {agent.mxid}")

    async def _handle(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "/agents":
            self._list()
        elif word == "/to":
            self._choose(rest.strip())
        elif word.startswith("/"):
            print(_HELP)
        elif line:
            try:
                await self._world.person.say(await self._room(self._current), line)
            except MatrixRefusal as refusal:
                print(f"The homeserver refused that: {refusal}")
            return
        self._prompt()

    def _choose(self, wanted: str) -> None:
        for number, agent in enumerate(self._world.agents, 1):
            if wanted.lower() in (agent.name.lower(), str(number)):
                self._current = agent
                return
        print(f"There is no agent {wanted!r}.")

    async def _room(self, agent: Agent) -> RoomID:
        mxid = MXID(agent.mxid)
        if mxid not in self._rooms:
            self._rooms[mxid] = await self._world.person.create_dm(agent.mxid)
        return self._rooms[mxid]

    def _prompt(self) -> None:
        print(f"you → {self._current.name}: ", end="", flush=True)

    async def _view(self) -> None:
        while True:
            busy = False
            for room_id in [*self._world.person.rooms]:
                for message in self._world.person.messages(room_id):
                    if message.sender != self._world.account.user_id:
                        self._show(message)
                busy = busy or bool(self._world.person.rooms[room_id].typing - {self._world.person.user_id})
            self._show_typing(busy)
            await asyncio.sleep(_LOOK_S)

    def _show(self, message: Message) -> None:
        before, now = self._shown.get(message.event_id), message.body.rstrip(_UNFINISHED)
        if before == now:
            return
        self._shown[message.event_id], self._changed = now, time.monotonic()
        if before is not None and self._open == message.event_id and now.startswith(before):
            print(now[len(before) :], end="", flush=True)
            return
        print(
            f"{_CLEAR_LINE if self._open is None else chr(10)}{self._name(message.sender)}: {now}", end="", flush=True
        )
        self._open, self._typing = message.event_id, False

    def _show_typing(self, busy: bool) -> None:
        if busy and not self._typing and self._open is None:
            print(f"{_CLEAR_LINE}… is typing", end="", flush=True)
            self._typing = True
        elif not busy and (self._open or self._typing) and time.monotonic() - self._changed >= _SETTLED_S:
            print(_CLEAR_LINE if self._open is None else "\n", end="")
            self._open, self._typing = None, False
            self._prompt()

    def _name(self, sender: MXID) -> str:
        return next((agent.name for agent in self._world.agents if agent.mxid == sender), sender)
