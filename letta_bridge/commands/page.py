"""``docs/commands.md``, from the table."""

from .help import who_may
from .parse import ENDLESS
from .show import bullets
from .table import Command, Table

_HEAD = """# Commands

This page is written by `letta-bridge commands-reference`, from the bridge's own table.

## Where

- In your **management room** and in a direct chat with the bot: write the command, with or without `!letta`. With
  several people in a management room, begin with `!letta` or mention the bot.
- In **any other room** with an agent or the bot: begin with `!letta`. Such a message never goes to an agent.
- On the **command line** of the bridge's machine: `letta-bridge ctl <command>`, as the user that runs the bridge. It
  reaches the running bridge through the socket `management.socket`. `--json` prints data for programs, `--timeout S`
  limits the wait, `--config FILE` names the bridge. Long work is followed until it ends; Ctrl-C leaves it running.
  The exit code is 0, or 1 when the command was refused or failed, or 23 when the bridge is not running here.

The bridge makes a management room for every admin who is named in `permissions` by a full Matrix id, and invites them.

## How

Words are separated by blanks; what has blanks itself stands in quotation marks (straight or “curly”). Options begin
with `--`: `--name value` or `--name=value`. `--help` after a command explains it. The commands of one room are
carried out in their order, each within 30 seconds; what takes longer becomes a job (`jobs`). Edits of commands are
ignored; a command that is deleted before it was carried out is not carried out.

| what | how it is named |
| --- | --- |
| an agent | its id, its Matrix id, a mention, its alias, its name, the beginning of its name, or `here` |
| a room | its id, its alias, a matrix.to link, the name of the agent whose room it is, or `here` |
| a person | the full Matrix id, or a mention |

"""
_CONFIRM = f"""What cannot be undone shows first what it would do, and ends with the line to type: the same command with
`--{ENDLESS}` and a few letters that are valid for ten minutes, for you, once.
"""


def page(table: Table) -> str:
    """The whole page."""
    groups = dict.fromkeys(command.group for command in table.commands)
    parts = [_HEAD + _CONFIRM, *(_group(group, table) for group in groups)]
    return "\n".join(parts)


def _group(group: str, table: Table) -> str:
    commands = [command for command in table.commands if command.group == group]
    return f"## {group}\n\n" + "\n".join(_command(command) for command in commands)


def _command(command: Command) -> str:
    parts = [f"### {command.name}", f"`{command.usage}`", command.summary[:1].upper() + command.summary[1:] + "."]
    if command.details:
        parts.append(command.details)
    things = [f"`{arg.name}`: {arg.help}" for arg in command.args]
    things += [f"`--{option.name}`: {option.help}" for option in command.options]
    if things:
        parts.append(bullets(things))
    if command.examples:
        parts.append("```\n" + "\n".join(command.examples) + "\n```")
    parts.append(who_may(command))
    return "\n\n".join(parts) + "\n"
