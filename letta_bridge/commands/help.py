"""``help``, and what is said of each command wherever it is described."""

from .call import Call
from .empty import advice
from .parse import PREFIX
from .show import bullets
from .table import Arg, Command, Need, Reply, Table

GROUP = "Bridge"
_MAY = {
    Need.USER: "Whoever may talk to agents can use it.",
    Need.OWNER: "The agent's owner and administrators can use it.",
    Need.ADMIN: "Administrators can use it.",
}


def who_may(command: Command) -> str:
    """One or two sentences: who can use it, and where."""
    where = ""
    if command.only_ctl:
        where = " Only on the command line (`letta-bridge ctl`)."
    elif command.private:
        where = " Only in a management room, in a direct chat with the bot, and on the command line."
    return _MAY[command.need] + where


def about(command: Command) -> str:
    """Everything there is to say about a command."""
    parts = [f"`{command.usage}`", command.summary[:1].upper() + command.summary[1:] + "."]
    if command.details:
        parts.append(command.details)
    things = [f"`<{arg.name}>`: {arg.help}" for arg in command.args]
    things += [f"`--{option.name}`: {option.help}" for option in command.options]
    if things:
        parts.append(bullets(things))
    if command.examples:
        before = "letta-bridge ctl" if command.only_ctl else PREFIX
        parts.append("For example:\n\n" + bullets(f"`{before} {example}`" for example in command.examples))
    parts.append(who_may(command))
    return "\n\n".join(parts)


async def _help(call: Call) -> Reply:
    chosen: Command | None = call.args.get("command")
    if chosen is not None:
        return Reply(about(chosen), data=_data(chosen))
    usable = [command for command in call.table.commands if _usable(command, call)]
    data = [_data(command) for command in usable]
    parts = [await _greeting(call), *_lists(call.table, usable), _footer(call)]
    return Reply("\n\n".join(part for part in parts if part), data=data)


def _usable(command: Command, call: Call) -> bool:
    if call.via != "ctl" and (command.only_ctl or (command.private and not call.management)):
        return False
    return call.admin or command.need is not Need.ADMIN


def _lists(table: Table, usable: list[Command]) -> list[str]:
    groups = dict.fromkeys(command.group for command in table.commands)
    found = {group: [command for command in usable if command.group == group] for group in groups}
    return [
        f"**{group}**\n\n" + bullets(f"`{command.name}`: {command.summary}" for command in commands)
        for group, commands in found.items()
        if commands
    ]


async def _greeting(call: Call) -> str:
    said = (
        "I am the bridge between Matrix and Letta. To talk to an agent, start a chat with it or write in its room; in "
        "rooms with several people, mention it. `!stop` ends what an agent is doing."
    )
    if call.via == "ctl":
        said = ""
    return "\n\n".join(part for part in (said, await advice(call), "I understand:") if part)


def _footer(call: Call) -> str:
    if call.via == "ctl":
        return "`help <command>` says more about one of them."
    prefix = "" if call.management else f" Begin each with `{PREFIX}`."
    return f"`help <command>` says more about one of them.{prefix}"


def _data(command: Command) -> dict[str, object]:
    return {
        "name": command.name,
        "usage": command.usage,
        "summary": command.summary,
        "need": command.need.value,
        "group": command.group,
        "only_ctl": command.only_ctl,
    }


HELP = Command(
    "help",
    "lists what you can do here; `help <command>` says more about one",
    Need.USER,
    _help,
    GROUP,
    args=(Arg("command", "command", "the command that you want to know more about", required=False),),
    examples=("help", "help agent"),
)
