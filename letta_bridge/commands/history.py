"""``import``: shows an agent's earlier conversation in its room."""

from ..db.agents import AgentRow
from ..jobs.history import KIND
from .begin import begin
from .call import Call
from .show import name_of
from .table import Arg, Command, CommandError, Need, Reply

_MOST = 500
_FEW = 20


async def _import(call: Call) -> Reply:
    agent: AgentRow = call.args["agent"]
    asked = call.args["count"]
    lines = asked if asked is not None else call.desk.config.mirror.history or _FEW
    if not 1 <= lines <= _MOST:
        raise CommandError(f"From 1 to {_MOST} lines can be shown.")
    if agent.portal_room is None or not agent.portal_joined:
        raise CommandError(f"{name_of(agent)} has no room yet, or is not in it; `agent {agent.agent_id}` tells more.")
    if agent.state == "archived":
        raise CommandError(f"{name_of(agent)} is archived; `recall` it first.")
    args = {"agent_id": agent.agent_id, "shown": name_of(agent), "count": lines}
    text = f"The last {lines} lines of {name_of(agent)} are being shown in its room."
    return await begin(call, KIND, args, subject=f"agent:{agent.agent_id}", text=text)


COMMANDS = (
    Command(
        "import",
        "shows an agent's earlier conversation in its room",
        Need.OWNER,
        _import,
        "Agents' lives",
        (
            Arg("agent", "agent", "which agent; `here`: the one of this room"),
            Arg("count", "number", "how many lines; else `mirror.history`", required=False),
        ),
        details=(
            "The last lines of the agent's main conversation are put into its own room: the agent's by itself, "
            "people's as quotes with their names. They carry the time at which they were said where the homeserver "
            "allows that, notify nobody and are answered by nobody. What stands in the room already is not shown a "
            "second time, however often the command is used. What is said meanwhile stands between the lines, and "
            "lines that are shown again later stand behind what was said before: Matrix has no other place for them."
        ),
        examples=("import Ada", "import Ada 100"),
        changes=True,
    ),
)
