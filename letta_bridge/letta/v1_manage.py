"""What changes on a Letta V1 server at an administrator's word, and what tells one such server from another.

The forms are those of 0.16.8, measured. Three of its habits shape this file. Creating an agent refuses names with a
slash, an emoji or a line break (HTTP 500, "Export failed"), which renaming takes. A creation whose caller went away is
completed all the same. An empty database answers like a full one, with the same ids of user and organisation.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..ids import AgentID
from .backend import CREATION_KEY, Agent, NewAgent
from .errors import Kind, LettaError
from .v1_agents import agent_of, listed
from .v1_errors import NotFound, clean
from .v1_http import ALL_AGENTS, V1Http
from .v1_stream import Json

log = logging.getLogger(__name__)

MARKER = "letta_bridge_instance"
"""The label of the bridge's own memory block."""

_MARKER_IS = "Tells letta-bridge which Letta this is. Belongs to no agent."
_DEFAULT_ORGANISATION = "org-00000000-0000-4000-8000-000000000000"
_LAST_RESORT = "letta/letta-free"  # listed first by every server, but answered by a service on the internet
_NEWEST = 50
_CREATABLE = re.compile(r"[\w '\-]*")
_NOT_CREATABLE = re.compile(r"[^\w '\-]+")


class Management:
    """The calls of :class:`~letta_bridge.letta.backend.Backend` that create, change and compare."""

    def __init__(self, http: V1Http) -> None:
        self._http = http

    async def create(self, new: NewAgent, key: str) -> Agent:
        """The one agent of ``key``: see :meth:`Backend.create_agent <letta_bridge.letta.backend.Backend>`."""
        name = storable(new.name)
        provisional = creatable(name)
        row = await self._created_for(key, name, provisional)
        if row is None:
            row = await self._only(await self._create(new, provisional, key), key, name, provisional)
        if row.get("name") == provisional != name:
            return agent_of(await self._http.rename_agent(AgentID(row["id"]), name))
        return agent_of(row)

    async def rename(self, agent_id: AgentID, name: str) -> Agent:
        """Give the agent another name."""
        try:
            return agent_of(await self._http.rename_agent(agent_id, storable(name)))
        except NotFound as error:
            raise LettaError(Kind.AGENT_GONE, error.detail) from error

    async def delete(self, agent_id: AgentID) -> None:
        """Delete the agent, if it is there."""
        try:
            await self._http.delete_agent(agent_id)
        except NotFound as error:
            # also what belongs to an agent can be missing: only its own absence is what was wanted
            try:
                await self._http.agent(agent_id)
            except NotFound:
                return
            raise LettaError(Kind.INTERNAL, error.detail) from error

    async def fingerprint(self) -> str | None:
        """When the database's organisation was created: to the microsecond, and never changed afterwards.

        Its id is the same everywhere. The ids of base tools differ too, but come anew when somebody deletes a tool,
        and then the same Letta would look like another.
        """
        organisations = await self._http.organisations()
        if organisations is None:
            # a proxy without Letta behind it says so too, and so does a wrong key
            await self._http.models()
            return None
        dated = [row for row in organisations if isinstance(row.get("created_at"), str)]
        if not dated:
            return None
        first = min(dated, key=lambda row: (row["id"] != _DEFAULT_ORGANISATION, row["created_at"], row["id"]))
        return f"{first['id']} of {first['created_at']}"

    async def read_marker(self) -> str | None:
        """The value of the oldest block with the bridge's label."""
        blocks = await self._http.blocks_labelled(MARKER)
        return str(blocks[0].get("value")) if blocks else None

    async def write_marker(self, value: str) -> None:
        """Change the block, or make it."""
        blocks = await self._http.blocks_labelled(MARKER)
        if not blocks:
            await self._http.create_block(MARKER, value, _MARKER_IS)
            # if one that was given up for lost came after all, both have to say the same
            blocks = await self._http.blocks_labelled(MARKER)
        for block in blocks:
            if block.get("value") != value:
                await self._http.change_block(block["id"], value)

    async def _created_for(self, key: str, *names: str) -> Json | None:
        """The oldest agent that was created for ``key`` and has one of these names."""
        found: list[Json] = []
        for name in dict.fromkeys(names):
            found += [row for row in await self._named(name) if _key_of(row) == key]
        return min(found, key=lambda row: (str(row.get("created_at")), row["id"]), default=None)

    async def _named(self, name: str) -> Sequence[Json]:
        """Every agent of this name. The empty one is no filter to Letta, so then it is every agent."""
        found: dict[str, Json] = {}
        after: str | None = None
        while True:
            page = await self._http.agents(_brief, limit=ALL_AGENTS, after=after, name=name)
            more = [row for row in page if row["id"] not in found]
            if not more:
                return list(found.values())
            found.update((row["id"], row) for row in more)
            after = page[-1]["id"]

    async def _create(self, new: NewAgent, name: str, key: str) -> Json:
        model = new.model if new.model is not None else await self._usual_model()
        fields: dict[str, Any] = {
            "name": name,
            "model": storable(model),
            "memory_blocks": [
                {"label": "persona", "value": storable(new.persona)},
                {"label": "human", "value": storable(new.human)},
            ],
            "description": storable(new.description),
            "tags": [storable(tag) for tag in new.tags],
            "metadata": {**_storable_values(new.metadata), CREATION_KEY: key},
        }
        try:
            return await self._http.create_agent(fields)
        except LettaError as error:
            if error.kind is Kind.REJECTED and model not in (offered := await self._http.models()):
                raise LettaError(Kind.NO_MODEL, no_model(model, offered)) from error
            raise

    async def _only(self, made: Json, key: str, *names: str) -> Json:
        """The agent of ``key`` after ``made`` was created for it.

        An earlier attempt that was given up may have come to its end meanwhile. Then that one stays, and ``made``,
        which nobody has seen yet, goes.
        """
        first = await self._created_for(key, *names)
        if first is None or first["id"] == made["id"]:
            return made
        log.warning("letta created an agent twice: the second is deleted", extra={"action": "created_twice"})
        await self.delete(AgentID(made["id"]))
        return first

    async def _usual_model(self) -> str:
        """The model that most of the newest agents use, if it is still offered; else the first that is.

        The newest only, because a list of thousands takes seconds, and because taste changes.
        """
        offered = await self._http.models()
        rows = await self._http.agents(listed, limit=_NEWEST, newest_first=True)
        used = Counter(row.agent.model for row in rows if not row.agent.companion)
        own = [handle for handle in offered if handle != _LAST_RESORT or used[handle]] or offered
        if not own:
            raise LettaError(Kind.NO_MODEL, "Letta offers no model at all")
        return max(own, key=lambda handle: used[handle])  # the first of equals


def creatable(name: str) -> str:
    """``name``, or what of it Letta takes when an agent is created."""
    return name if _CREATABLE.fullmatch(name) else _NOT_CREATABLE.sub(" ", name).strip() or "agent"


def storable(text: str) -> str:
    """``text`` without what Letta's database refuses in a column: NUL, and halves of characters."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def no_model(model: str, offered: Sequence[str]) -> str:
    """What to tell a person who asked for a model that is not there."""
    return clean(f"Letta offers no model “{model}”, but {', '.join(offered) or 'none at all'}")


def _storable_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: storable(value) if isinstance(value, str) else value for key, value in metadata.items()}


def _key_of(row: Json) -> object:
    metadata = row.get("metadata")
    return metadata.get(CREATION_KEY) if isinstance(metadata, dict) else None


def _brief(row: Json) -> Json:
    """What is kept of a row while agents are compared: many may have the same name."""
    return {name: row.get(name) for name in ("id", "name", "description", "tags", "metadata", "model", "created_at")}
