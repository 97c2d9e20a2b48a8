"""How Letta's list of agents and the bridge's rows differ; in slices, so that thousands of agents hold nobody up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..db.agents import AgentRow
from ..db.database import clean
from ..ids import AgentID
from ..letta.backend import Agent, AgentListing
from .avatar import avatar_source

T = TypeVar("T")
_SLICE = 100


@dataclass(slots=True)
class Picture:
    """How the rows and the list differ."""

    listed: set[AgentID] = field(default_factory=set)
    present: set[AgentID] = field(default_factory=set)
    """Listed and to be mirrored."""
    new: list[Agent] = field(default_factory=list)
    changed: list[tuple[AgentRow, dict[str, Any]]] = field(default_factory=list)
    back: list[AgentRow] = field(default_factory=list)
    gone: list[AgentRow] = field(default_factory=list)
    """Mirrored as present, and not listed."""
    left_out: list[AgentRow] = field(default_factory=list)
    """Mirrored as present, listed, and not wanted by the configuration."""


async def compare(rows: Mapping[AgentID, AgentRow], listing: AgentListing, wanted: Callable[[Agent], bool]) -> Picture:
    """Compare a list with the rows that were there before it was begun. Who was dismissed by a command is let be."""
    picture = Picture()
    async for agent in in_slices(listing.agents):
        picture.listed.add(agent.id)
        if not wanted(agent):
            continue
        picture.present.add(agent.id)
        row = rows.get(agent.id)
        if row is None:
            picture.new.append(agent)
            continue
        if row.dismissed:
            continue
        if row.state in ("missing", "archived"):
            picture.back.append(row)
        if columns := _changes(row, agent):
            picture.changed.append((row, columns))
    async for row in in_slices(list(rows.values())):
        if row.state in ("new", "active") and row.agent_id not in picture.present:
            (picture.left_out if row.agent_id in picture.listed else picture.gone).append(row)
    return picture


def stored_tags(agent: Agent) -> tuple[str, ...]:
    """An agent's tags as they are stored: Letta names them in any order."""
    return tuple(sorted(clean(tag) for tag in agent.tags))


def _changes(row: AgentRow, agent: Agent) -> dict[str, Any]:
    """What Letta says differently now than the row."""
    said = {"name": clean(agent.name), "description": clean(agent.description), "model": clean(agent.model)}
    columns: dict[str, Any] = {key: value for key, value in said.items() if getattr(row, key) != value}
    if row.tags != (tags := stored_tags(agent)):
        columns["tags"] = tags
    if row.avatar != (avatar := avatar_source(agent.metadata)):
        columns |= {"avatar": avatar, "avatar_mxc": ""}  # the upload was for the old one
    return columns


async def in_slices(items: Sequence[T]) -> AsyncIterator[T]:
    """The items, letting others work now and then: thousands of agents must not hold up a message."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % _SLICE == 0:
            await asyncio.sleep(0)
