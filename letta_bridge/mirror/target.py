"""What Matrix should show of an agent: a pure function of its row."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..db.agents import AgentRow
from ..ids import MXID, PREFIX, RoomID, puppet_suffix
from .avatar import is_mxc
from .names import LONGEST_NAME, shown_name, shown_topic

BRIDGE_STATE = "m.bridge"
"""MSC2346. Its older twin ``uk.half-shot.bridge`` is not sent: Element reads both and would list the bridge twice."""

_OFFLINE = " (offline)"
ARCHIVED = " (archived)"
_HELD, _DISMISSED = "1", "1d"
"""How ``Target.bridge`` begins: the second where the portal's own mark says that the agent was dismissed."""
_ORIGINS = ("letta", "summoned", "adopted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be true of an agent on the homeserver, as far as it exists there.

    Attributes:
        name: the puppet's display name; empty: its profile is cleared, the picture too.
        portal_name: the portal's name.
        portal_topic: the portal's topic; may be empty.
        bridge: short for what the portal's ``m.bridge`` event says (see :func:`bridge_content`), and for whether its
            mark says that the agent was dismissed.
        listed: whether the portal is in the space.
        made: whether what does not exist yet is made. Nothing is begun for an agent that Letta does not list.
    """

    name: str
    portal_name: str
    portal_topic: str
    bridge: str
    listed: bool
    made: bool


def target_of(row: AgentRow) -> Target:
    """What the row says.

    An agent that is ``missing`` keeps everything and is marked as offline. One that is ``archived`` keeps its room,
    which says so; the puppet stays in it, so that it can come back as it was.
    """
    name = shown_name(row.name, row.agent_id)
    archived = row.state == "archived"
    portal_name = _with(name, ARCHIVED) if archived else name
    return Target(
        name="" if archived else _with(name, _OFFLINE) if row.state == "missing" else name,
        portal_name=portal_name,
        portal_topic=_archived_topic(row) if archived else shown_topic(row.description),
        bridge=f"{_DISMISSED if row.dismissed else _HELD}|{row.agent_id}|{_picture(row)}|{portal_name}",
        listed=not archived,
        made=row.state in ("new", "active"),
    )


def bridge_key(row: AgentRow) -> str:
    """The state key of a portal's ``m.bridge`` event; not the agent's id itself, which may be longer than a key."""
    return f"{PREFIX}://letta/{puppet_suffix(row.agent_id)}"


def bridge_content(row: AgentRow, bot: MXID) -> dict[str, Any]:
    """The portal's ``m.bridge`` event, by which clients tell what a room is bridged to."""
    channel: dict[str, Any] = {"id": row.agent_id, "displayname": target_of(row).portal_name}
    if picture := _picture(row):
        channel["avatar_url"] = picture
    return {
        "bridgebot": bot,
        "creator": bot,
        "protocol": {"id": "letta", "displayname": "Letta", "external_url": "https://docs.letta.com"},
        "channel": channel,
    }


def portal_content(row: AgentRow) -> dict[str, Any]:
    """The portal's own state event: enough to find its agent again without a database."""
    return {
        "version": 1,
        "agent_id": row.agent_id,
        "puppet": row.mxid,
        "origin": row.origin,
        **({"owner": row.owner} if row.owner else {}),
        **({"dismissed": True} if row.dismissed else {}),
    }


def told_by_mark(row: AgentRow, mark: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a row lacks and its portal's mark tells, after a restore or a lost database.

    Only what the row says nothing about: a row with an owner or an origin keeps both. That an agent was dismissed is
    taken from the mark unless the row itself knew of it: then the agent was recalled since.

    Args:
        mark: the portal's own state event, sent by the bot itself.
    """
    columns: dict[str, Any] = {}
    owner, origin = mark.get("owner"), mark.get("origin")
    if not row.owner and row.origin == "letta":
        if isinstance(owner, str) and owner.startswith("@") and ":" in owner:
            columns["owner"] = owner
        if origin in _ORIGINS and origin != row.origin:
            columns["origin"] = origin
    unaware = row.portal_room is None or (row.portal_bridge or "").startswith(_HELD + "|")
    if mark.get("dismissed") is True and not row.dismissed and unaware:
        columns |= {"dismissed": True, "state": "archived"}
    return columns


def marks_dismissal(row: AgentRow) -> bool:
    """Whether the portal's mark may say that the agent is dismissed, as far as the row knows; ``""``: half told."""
    return row.portal_bridge is not None and not row.portal_bridge.startswith(_HELD + "|")


def parent_content(domain: str) -> Mapping[str, Any]:
    """The portal's word of its space."""
    return {"via": [domain], "canonical": True}


def in_force(content: Mapping[str, Any]) -> bool:
    """Whether an ``m.space.child`` or ``m.space.parent`` event says that there is one: without servers it is none."""
    via = content.get("via")
    return isinstance(via, list) and bool(via)


def forgotten_portal() -> dict[str, Any]:
    """The columns of a row whose portal is no more."""
    return {
        "portal_room": None,
        "portal_name": None,
        "portal_topic": None,
        "portal_joined": False,
        "portal_bridge": None,
        "in_space": "",
    }


def moved_portal(room_id: RoomID) -> dict[str, Any]:
    """The columns of a row whose portal is now another room, of which nothing is known yet."""
    return {**forgotten_portal(), "portal_room": room_id}


def _with(name: str, suffix: str) -> str:
    """``name`` and ``suffix``, in no more characters than a name may have."""
    room = LONGEST_NAME - len(suffix)
    return (name if len(name) <= room else name[: room - 1].rstrip(" \u200c\u200d") + "\u2026") + suffix


def _archived_topic(row: AgentRow) -> str:
    since = "" if row.missing_since is None else f" {_day(row.missing_since)}"
    if row.dismissed:
        when = f" since{since}" if since else ""
        return f"Archived{when}: the agent was dismissed with a command. The room stays readable."
    when = f" since{since}" if since else " any more"
    return f"Archived: Letta has not listed this agent{when}. The room stays readable, and comes back with the agent."


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _picture(row: AgentRow) -> str:
    """The picture that the puppet was given, where that is known."""
    return row.avatar if is_mxc(row.avatar) else row.avatar_mxc
