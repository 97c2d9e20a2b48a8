"""What to do next where nothing is set up yet."""

from ..routing.permissions import Level
from .call import Call

_NO_AGENTS = "There are no agents yet. Create one in Letta; it appears here within a minute."


async def advice(call: Call) -> str:
    """What this person should do first; empty once everything is there."""
    parts = []
    if not any(agent.state in ("new", "active") for agent in await call.desk.agents.all()):
        parts.append(await _no_agents(call))
    if call.admin and not _others_may(call):
        parts.append(
            "Nobody but administrators may talk to agents yet. Let people in with `permissions:` in the "
            "configuration (docs/permissions.md), for example your whole server: "
            f'`"{call.desk.homeserver.domain}": user`.'
        )
    return "\n\n".join(parts)


async def _no_agents(call: Call) -> str:
    letta = (await call.desk.health.report())["checks"]["letta"]
    if letta["ok"] is False:
        why = letta["detail"]
        return f"There are no agents yet, and Letta does not work for me ({why}). `status` tells more."
    if call.table.named("summon") is None or not call.admin:
        return _NO_AGENTS
    return _NO_AGENTS + " Or make one from here: `summon <name>`."


def _others_may(call: Call) -> bool:
    levels = call.desk.config.permissions
    return any(level == Level.USER or (not who.startswith("@") and level > Level.NONE) for who, level in levels.items())
