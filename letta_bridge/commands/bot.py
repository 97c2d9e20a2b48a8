"""What the bot answers in a direct chat: ``help`` and ``agents``. The management room's commands come beside it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote

from ..db.agents import AgentRow, Agents
from ..ids import MXID

_SHOWN = 100


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    help: str
    run: Callable[[MXID, str], Awaitable[str]]


class BotCommands:
    """Answers of the bot, as Markdown."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._commands = (
            _Command("help", "shows this", self._help),
            _Command("agents", "lists the agents; `agents <text>` those whose name contains it", self._list),
        )

    async def answer(self, sender: MXID, text: str) -> str:
        """The answer to a message of ``sender``; an unknown command gets the help."""
        words = text.strip().removeprefix("!letta").strip().split(maxsplit=1)
        name = words[0].casefold().lstrip("!/") if words else ""
        for command in self._commands:
            if command.name == name:
                return await command.run(sender, words[1] if len(words) > 1 else "")
        return await self._help(sender, "")

    async def _help(self, _: MXID, __: str) -> str:
        lines = [f"- `{command.name}`: {command.help}" for command in self._commands]
        return (
            "I am the bridge between Matrix and Letta. To talk to an agent, start a chat with it or write in its room; "
            "in rooms with several people, mention it. `!stop` ends what an agent is doing.\n\n"
            "I understand:\n\n" + "\n".join(lines)
        )

    async def _list(self, _: MXID, search: str) -> str:
        active = [agent for agent in await self._agents.all() if agent.state == "active"]
        found = [agent for agent in active if search.strip().casefold() in (agent.shown_name or "").casefold()]
        if not active:
            return "There are no agents yet. Create one in Letta; it appears here within a minute."
        if not found:
            return f"None of the {len(active)} agents has that in its name."
        lines = [_line(agent) for agent in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"- … and {len(found) - _SHOWN} more; `agents <text>` narrows the list")
        heading = "One agent:" if len(found) == 1 else f"{len(found)} agents:"
        return f"{heading}\n\n" + "\n".join(lines)


def _line(agent: AgentRow) -> str:
    # only what would change the list: the plain text is shown as it is by some clients
    name = "".join("\\" + char if char in "\\`*[]<>" else char for char in agent.shown_name or agent.mxid)
    line = f"- [{name}](https://matrix.to/#/{quote(agent.mxid, safe='@:')})"
    if agent.portal_room:  # by its alias: room ids of version 12 do not say which server to ask
        line += f" · [room](https://matrix.to/#/{quote('#' + agent.mxid[1:], safe=':')})"
    return line
