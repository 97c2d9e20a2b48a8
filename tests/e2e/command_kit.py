"""People with matrix-nio who command a bridge: in its management room, in a direct chat with it, in an agent's room."""

from __future__ import annotations

import html
import os
import re
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from nio import ProfileGetResponse, RoomResolveAliasResponse

from letta_bridge.ids import RoomID
from letta_bridge.testing.person import Message

from .nio_person import NioPerson
from .world import World

BROKEN = "Something went wrong"
TRANSCRIPT = "COMMAND_TRANSCRIPT"
"""The environment variable that names a file into which everything said is written, for a person to read."""
_LINK = re.compile(r'<a href="https://matrix\.to/#/([^"?]+)[^"]*"')
_ENDED = re.compile(r"❌ It was not done|\A(?!.*(?:⏳|▫️|❌))", re.S)


@dataclass
class Stage:
    """A bridge and the people who command it. ``chief`` and ``deputy`` are administrators, ``alice`` may talk to
    agents, ``mallory`` may do nothing."""

    world: World
    chief: NioPerson
    deputy: NioPerson
    alice: NioPerson
    mallory: NioPerson
    room: RoomID
    """The chief's management room, whose invitation was accepted."""
    shared: bool = False
    """Whether the deputy is in it, too."""
    worked: set[str] = field(default_factory=set)
    """Commands that did what was asked of them."""

    def talk(self, person: NioPerson, room: str, prefix: str = "") -> Talk:
        """This person in a room with the bot."""
        return Talk(self, person, room, prefix, replies=bool(prefix))

    @property
    def here(self) -> Talk:
        """The chief in the management room."""
        return self.managing(self.chief)

    def managing(self, person: NioPerson) -> Talk:
        """This person in the chief's management room."""
        return Talk(self, person, self.room, "!letta " if self.shared else "", replies=False)

    async def dm(self, person: NioPerson, **options: str) -> Talk:
        """This person in a new direct chat with the bot."""
        room = await person.create_dm(self.world.bot, **options)
        await person.wait_joined(room, self.world.bot)
        return self.talk(person, room)

    def change(self, sql: str, *values: object) -> None:
        """Change the running bridge's database, where only time would bring about what is tested."""
        with sqlite3.connect(self.world.bridge.folder / "bridge.db", timeout=20) as db:
            db.execute(sql, values)
        db.close()


@dataclass
class Talk:
    """Commands of one person in one room, answered one after the other.

    ``prefix``: what begins each line where it is not clear that it is a command. ``replies``: whether each answer says
    to what, as where others talk to agents.
    """

    stage: Stage
    person: NioPerson
    room: str
    prefix: str = ""
    replies: bool = False

    async def ask(self, line: str, words: str = "", seconds: float = 20, *, works: bool = False) -> Message:
        """Use a command; its answer, which must have ``words`` in it.

        Args:
            works: it does what is asked for, which counts for the table.
        """
        (answer,) = await self.all([line], seconds)
        assert words in answer.body, f"{words!r} is not in the answer to {line!r}:\n{answer.body}"
        if works:
            self.stage.worked.add(named(line))
        return answer

    async def all(self, lines: Iterable[str], seconds: float = 60) -> list[Message]:
        """Use many commands at once; the answer to each."""
        lines = list(lines)
        first = [await self.person.say(self.room, self.prefix + line) for line in lines]
        answers = await self.person.wait(
            lambda: self._answers(first), f"{len(lines)} answers, beginning with that to {lines[0]!r}", seconds
        )
        for line, answer in zip(lines, answers, strict=True):
            assert BROKEN not in answer.body, f"{line}: {answer.body}\n{self.stage.world.bridge.log_tail(40)}"
            self.stage_note(line, answer)
        return answers

    def _answers(self, asked: list[str]) -> list[Message] | None:
        said = self.person.messages(self.room, after=asked[0])
        if self.replies:
            by = {message.reply_to: message for message in said}
            found = [by[event] for event in asked if event in by]
        else:
            found = [m for m in said if m.sender == self.stage.world.bot and m.body[:1] not in "⚠✅"]
            found = [m for m in found if m.msgtype != "m.file"]
        return found[: len(asked)] if len(found) >= len(asked) else None

    async def job(self, line: str, words: str = "", seconds: float = 40, *, works: bool = True) -> Message:
        """Use a command that begins a job; its report, once it does not change any more."""
        begun = await self.ask(line)
        assert "(job " in begun.body, begun.body

        def ended() -> Message | None:
            now = next(m for m in self.person.messages(self.room) if m.event_id == begun.event_id)
            return now if _ENDED.match(now.body) or "❌ It was not done" in now.body else None

        report = await self.person.wait(ended, f"the end of {line!r}", seconds)
        self.stage_note(f"{line} (its end)", report)
        assert words in report.body, f"{words!r} is not in the report of {line!r}:\n{report.body}"
        if works:
            assert "It was not done" not in report.body, report.body
            self.stage.worked.add(named(line))
        return report

    async def confirmed(self, line: str, shows: str) -> str:
        """Use a command that asks back; the line that it says is to be typed."""
        preview = await self.ask(line, shows)
        match = re.search(r"To do it, type within 10 minutes:\s+`?!letta (.+?)`?\Z", preview.body)
        assert match, preview.body
        return match[1]

    async def said(self, words: str, *, after: str | None = None, seconds: float = 20) -> Message:
        """A message of the bot with these words."""
        message = await self.person.wait_message(self.room, self.stage.world.bot, words, after=after, seconds=seconds)
        self.stage_note("(by itself)", message)
        return message

    def count(self, words: str) -> int:
        """How many messages of the bot have these words."""
        return sum(words in message.body for message in self.person.messages(self.room, self.stage.world.bot))

    def stage_note(self, line: str, answer: Message) -> None:
        """Write it down for people who want to read how the bridge talks."""
        if path := os.environ.get(TRANSCRIPT):
            name = self.person.user_id[1:].split("_")[0]
            with Path(path).open("a") as file:
                file.write(f"### {name}: `{self.prefix}{line}`\n\n{answer.body}\n\n<!-- {answer.html} -->\n\n---\n\n")


def named(line: str) -> str:
    """The command that a line begins with."""
    from letta_bridge.commands.groups import TABLE

    found = TABLE.find(line.split())
    assert found, line
    return found[0].name


def links(message: Message) -> list[str]:
    """What the links in a message lead to."""
    return [unquote(html.unescape(target)) for target in _LINK.findall(message.html or "")]


async def resolve(person: NioPerson, target: str) -> str:
    """Follow a link: the room or the user that it leads to."""
    if target.startswith("#"):
        answer = await person.client.room_resolve_alias(target)
        assert isinstance(answer, RoomResolveAliasResponse), f"{target} leads nowhere: {answer}"
        return str(answer.room_id)
    if target.startswith("@"):
        assert isinstance(await person.client.get_profile(target), ProfileGetResponse), target
    return target


async def follow(person: NioPerson, message: Message) -> RoomID:
    """The room to which the last link leads; joined."""
    target = next(link for link in reversed(links(message)) if link[0] in "#!")
    room = RoomID(await resolve(person, target))
    if room not in person.client.rooms:
        await person.wait_invite(room)
        await person.join(room)
    return room


def member(person: NioPerson, room: str, user: str) -> Callable[[], bool]:
    """Whether somebody is, as this person sees it, in the room."""
    return lambda: person.joined(room, user)
