"""The demo without a terminal: a short conversation, the transcript as the person saw it, and figures."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from letta_bridge.demo.world import Agent, World
from letta_bridge.ids import EventID, RoomID
from letta_bridge.testing.person import Message
from letta_bridge.testing.stack.process import StackError

_QUIET_S = 2.0
"""A real model's reply counts as finished when nothing happened to it for so long and its author stopped typing."""


@dataclass
class Conversation:
    """What was said, and how long the agents took."""

    world: World
    reply_ms: list[float] = field(default_factory=list)
    replies: int = 0

    async def hold(self) -> None:
        """Talk to all three agents; raises StackError or NotSeen when one does not answer as it should."""
        ada, basil, cleo = self.world.agents
        scripted = self.world.provider.scripted

        await self._accept_invitations()
        room = await self._direct_room(ada)
        await self._ask(ada, room, "Hello Ada! Who are you, in one sentence?", "Hello Ada!")
        portal = await self.world.person.resolve(basil.alias)
        await self._ask(basil, portal, "Good morning, Basil. What do you do all day?", "Good morning, Basil.")
        listing = "**Herbs** for the window:\n\n1. basil\n2. chives\n3. `mint`"
        request = f"#say {listing}" if scripted else "Name three herbs, as a numbered Markdown list with a bold title."
        answer = await self._ask(basil, portal, request, "basil")
        if answer.html:
            self._note(f"formatted, as HTML: {' '.join(answer.html.split())}")
        elif scripted:
            raise StackError(f"{basil.name} answered without formatting: {answer.body!r}")
        await self._stopped(ada, room)
        await self._ask(cleo, await self._direct_room(cleo), "Cleo, tell me a story of one sentence.", "story")

    async def _direct_room(self, agent: Agent) -> RoomID:
        room = await self.world.person.create_dm(agent.mxid)
        self._note(f"you open a chat with {agent.name}")
        await self.world.person.wait_member(room, agent.mxid, seconds=30)
        return room

    async def _accept_invitations(self) -> None:
        person = self.world.person
        expected = 1 + len(self.world.agents)  # the space, and each agent's room
        await person.wait(lambda: len(person.invites) >= expected, f"{expected} invitations", 60)
        for room_id in list(person.invites):
            await person.join(room_id)
        spaces = [room.name for room in person.rooms.values() if room.is_space]
        self._note(f"you accept the invitations to the space {spaces[0]!r} and to the agents' rooms")

    async def _ask(self, agent: Agent, room: RoomID, text: str, expected: str) -> Message:
        started = time.monotonic()
        event = await self._say(agent, room, text)
        answer = await self._answer(agent, room, event, expected)
        self.replies += 1
        self.reply_ms.append((answer.changed - started) * 1000)
        self._show(agent, answer)
        return answer

    async def _stopped(self, agent: Agent, room: RoomID) -> None:
        scripted = self.world.provider.scripted
        request = "#slow 100 0.3" if scripted else "Count from one to five hundred, in words."
        event = await self._say(agent, room, request)
        await self.world.person.wait_message(
            room, sender=agent.mxid, after=event, where=lambda m: len(m.body) > 10, seconds=self._patience
        )
        stop = await self._say(agent, room, "!stop")
        answer = await self._finished(agent, room, event)
        if scripted and "word99" in answer.body:
            raise StackError("!stop did not stop the answer")
        self.replies += 1
        self._show(agent, answer)
        for message in self.world.person.messages(room, stop):
            if message.sender != self.world.account.user_id and message is not answer:
                self._note(f"notice: {message.body}")

    async def _say(self, agent: Agent, room: RoomID, text: str) -> EventID:
        print(f"  you → {agent.name}: {_indented(text)}", flush=True)
        return await self.world.person.say(room, text)

    async def _answer(self, agent: Agent, room: RoomID, event: EventID, expected: str) -> Message:
        if not self.world.provider.scripted:
            return await self._finished(agent, room, event)
        answer = await self.world.person.wait_message(
            room,
            sender=agent.mxid,
            after=event,
            where=lambda message: message.msgtype == "m.notice" or expected in message.body,
            seconds=self._patience,
        )
        return _not_a_notice(agent, answer)

    async def _finished(self, agent: Agent, room: RoomID, event: EventID) -> Message:
        person = self.world.person

        def look() -> Message | None:
            first = next((m for m in person.messages(room, event) if m.sender == agent.mxid), None)
            quiet = first is not None and time.monotonic() - first.changed >= _QUIET_S
            return first if quiet and agent.mxid not in person.rooms[room].typing else None

        answer = await person.wait(look, f"a finished answer of {agent.name}", self._patience)
        return _not_a_notice(agent, answer)

    @property
    def _patience(self) -> float:
        return 60 if self.world.provider.scripted else 300

    @staticmethod
    def _show(agent: Agent, message: Message) -> None:
        edits = f"  (written in {message.edits + 1} steps)" if message.edits else ""
        print(f"  {agent.name} → you: {_indented(message.body)}{edits}", flush=True)

    @staticmethod
    def _note(text: str) -> None:
        print(f"  ({text})", flush=True)

    def figures(self) -> dict[str, object]:
        """What the last line of the demo says."""
        return {
            "ok": True,
            "agents": len(self.world.agents),
            "rooms": len(self.world.person.rooms),
            "replies": self.replies,
            "median_reply_ms": round(statistics.median(self.reply_ms)),
        }


def _not_a_notice(agent: Agent, message: Message) -> Message:
    if message.msgtype == "m.notice":
        raise StackError(f"{agent.name} sent a notice instead of an answer: {message.body}")
    return message


def _indented(text: str) -> str:
    first, *others = text.split("\n")
    return "\n".join([first, *(f"      {line}" if line else "" for line in others)])
