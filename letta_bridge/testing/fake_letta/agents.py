"""Routes of agents: listing, creating, changing, deleting, their blocks and tools."""

import re

from aiohttp import web

from . import shapes
from .core import Core
from .engine import recompile
from .rows import boot_rows, system_row
from .state import BASE_TOOLS, Agent, Block, Tool
from .wire import Json, answer, body_of, choice, from_sdk, invalid, new_id, now, number, refuse

_ID = re.compile(r"agent-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
_RELATIONS = tuple(
    f"agent.{name}"
    for name in ("blocks", "identities", "managed_group", "pending_approval", "secrets", "sources", "tags", "tools")
)
MODELS = (
    "letta/letta-free",  # answered by a service on the internet; every server lists it, first
    *(f"openai-proxy/{name}" for name in ("gpt-4.1", "gpt-4o", "gpt-4o-mini", "gpt-5-mini")),
)
DEFAULT_MODEL = "openai-proxy/gpt-4o"
_NAME = re.compile(r"^[\w '\-]+$")
_WITH_GREETING = ("memgpt_agent", "memgpt_v2_agent")


def agent_id_of(request: web.Request) -> str:
    """The agent id of the path; 422 when it is malformed."""
    raw = request.match_info["agent_id"]
    if not _ID.match(raw):
        raise invalid(
            "string_pattern_mismatch",
            ("path", "agent_id"),
            "String should match pattern 'agent-{uuid4}'",
            raw,
            examples=["agent-123e4567-e89b-42d3-8456-426614174000"],
        )
    return raw


def add_agent(
    core: Core,
    name: str,
    *,
    tags: list[str],
    metadata: Json,
    description: str | None,
    blocks: list[Block],
    tools: list[str],
    model: str = DEFAULT_MODEL,
    agent_type: str = "letta_v1_agent",
    sleeptime: bool = False,
    agent_id: str | None = None,
    hidden: bool | None = None,
) -> Agent:
    """Create an agent, and its companion when it is to have one.

    Those of the older types begin with a greeting that nobody asked for.
    """
    known = core.db.tools
    agent = Agent(
        name=name,
        tags=list(dict.fromkeys(tags)),
        metadata=metadata,
        description=description,
        blocks=blocks,
        tools=[known.get(tool) or Tool(tool, "custom") for tool in tools],
        model=model,
        agent_type=agent_type,
        id=agent_id or new_id("agent"),
        hidden=hidden,
    )
    if agent.id in core.db.agents:
        raise ValueError(f"there is an agent {agent.id}")
    core.db.agents[agent.id] = agent
    core.db.blocks.update((block.id, block) for block in blocks)
    row = system_row(agent.id, None, "")
    recompile(row, agent, agent.memory())
    core.db.store([row], agent.message_ids)
    if agent_type in _WITH_GREETING:
        core.db.store(boot_rows(agent.id), agent.message_ids)
    if sleeptime:
        companion = add_agent(
            core,
            f"{name}-sleeptime",
            tags=[],
            metadata={},
            description=None,
            blocks=blocks,
            tools=[],
            agent_type="sleeptime_agent",
        )
        agent.group = shapes.sleeptime_group(agent.id, companion.id)
    return agent


def change_agent(agent: Agent, body: Json) -> None:
    """Apply what a PATCH says; what it does not know it ignores."""
    if body.get("name") is not None:
        agent.name = body["name"]
    if "description" in body:
        agent.description = body["description"]
    if body.get("tags") is not None:
        agent.tags = list(dict.fromkeys(body["tags"]))
    if body.get("metadata") is not None:
        agent.metadata = body["metadata"]
    agent.updated_at = now()


class AgentRoutes:
    """Handlers under ``/v1/agents/``, without those of messages."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def routes(self) -> list[web.RouteDef]:
        one = "/v1/agents/{agent_id}"
        return [
            web.get("/v1/agents/", self.listing),
            web.post("/v1/agents/", self.create),
            web.get("/v1/agents/count", self.count),
            web.get(one, self.retrieve),
            web.patch(one, self.update),
            web.delete(one, self.delete),
            web.get(f"{one}/tools", self.tools),
            web.patch(f"{one}/tools/approval/{{name}}", self.approval),
            web.get(f"{one}/core-memory/blocks", self.blocks),
            web.get(f"{one}/core-memory/blocks/{{label}}", self.block),
            web.patch(f"{one}/core-memory/blocks/{{label}}", self.change_block),
            web.patch(f"{one}/core-memory/blocks/attach/{{block_id}}", self.attach_block),
            web.patch(f"{one}/core-memory/blocks/detach/{{block_id}}", self.detach_block),
        ]

    async def listing(self, request: web.Request) -> web.Response:
        include = self._include(request)
        agents = [agent for agent in self._core.db.agents.values() if _matches(agent, request)]
        agents.sort(key=lambda agent: agent.created_at)
        field = choice(request, "order_by", ("created_at", "updated_at", "last_run_completion"))
        if field == "updated_at":
            agents.sort(key=lambda agent: agent.updated_at)
        if choice(request, "order", ("desc", "asc")) == "desc":
            agents.reverse()
        ids = [agent.id for agent in agents]
        # an unknown cursor is ignored: the list starts again
        after, before = request.query.get("after"), request.query.get("before")
        if before in ids:
            agents = agents[: ids.index(before)]
        if after in ids:
            agents = agents[ids.index(after) + 1 :]
        limit = number(request, "limit", 50)
        if limit < 0:
            refuse(500, "A database error occurred.")
        if include:  # any relation brings the tags along
            include = {*include, "agent.tags"}
        if self._core.settings.page_cap is not None:
            limit = min(limit or self._core.settings.page_cap, self._core.settings.page_cap)
        return answer([self._json(agent, include) for agent in agents[: limit or None]])

    async def count(self, request: web.Request) -> web.Response:
        return answer(len([agent for agent in self._core.db.agents.values() if not agent.hidden]))

    async def create(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        name = body.get("name", "FreshAgent")  # the real server makes one up
        _check_new_name(name)
        model = _model_of(body)
        _check_storable(name, body.get("description"), *(body.get("tags") or ()))
        blocks = [
            Block(block.get("label"), block.get("value", ""), description=block.get("description"))
            for block in body.get("memory_blocks") or ()
        ]
        blocks += [self._core.db.blocks[key] for key in body.get("block_ids") or ()]
        agent = add_agent(
            self._core,
            name,
            tags=body.get("tags") or [],
            metadata=body.get("metadata") or {},
            description=body.get("description"),
            blocks=blocks,
            tools=[*(BASE_TOOLS if body.get("include_base_tools", True) else ()), *(body.get("tools") or ())],
            model=model,
            agent_type=body.get("agent_type") or "letta_v1_agent",
            sleeptime=bool(body.get("enable_sleeptime")),
            hidden=body.get("hidden"),
        )
        return answer(self._json(agent, None))

    async def retrieve(self, request: web.Request) -> web.Response:
        include = self._include(request)
        return answer(self._json(self._core.agent(agent_id_of(request), "id"), include))

    async def update(self, request: web.Request) -> web.Response:
        agent_id = agent_id_of(request)
        body = await body_of(request)
        agent = self._core.agent(agent_id)
        _check_storable(body.get("name"), body.get("description"), *(body.get("tags") or ()))
        change_agent(agent, body)
        return answer(self._json(agent, None))

    async def delete(self, request: web.Request) -> web.Response:
        agent = self._core.agent(agent_id_of(request))
        self._core.db.remove_agent(agent)
        return answer({"message": f"Agent id={agent.id} successfully deleted"})

    async def tools(self, request: web.Request) -> web.Response:
        agent = self._core.agent(agent_id_of(request))
        return answer([shapes.tool_json(tool) for tool in agent.tools])

    async def approval(self, request: web.Request) -> web.Response:
        agent_id = agent_id_of(request)
        body = await body_of(request, optional=True)
        agent = self._core.agent(agent_id)
        wanted = body.get("requires_approval")
        if wanted is None:
            wanted = request.query.get("requires_approval") == "true"
        name = request.match_info["name"]
        if wanted:
            agent.needs_approval.add(name)
        else:
            agent.needs_approval.discard(name)
        return answer(None if from_sdk(request) else self._json(agent, None))

    async def blocks(self, request: web.Request) -> web.Response:
        agent = self._core.agent(agent_id_of(request))
        return answer([shapes.block_json(block) for block in agent.blocks])

    async def block(self, request: web.Request) -> web.Response:
        return answer(shapes.block_json(self._block(request)))

    async def change_block(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        block = self._block(request)
        change_block(block, body)
        return answer(shapes.block_json(block))

    async def attach_block(self, request: web.Request) -> web.Response:
        agent = self._core.agent(agent_id_of(request))
        block = self._core.db.blocks.get(request.match_info["block_id"])
        if block is None:
            refuse(404, f"Block with id '{request.match_info['block_id']}' not found")
        if block not in agent.blocks:
            agent.blocks.append(block)
        return answer(self._json(agent, None))

    async def detach_block(self, request: web.Request) -> web.Response:
        agent = self._core.agent(agent_id_of(request))
        agent.blocks = [block for block in agent.blocks if block.id != request.match_info["block_id"]]
        return answer(self._json(agent, None))

    def _block(self, request: web.Request) -> Block:
        agent = self._core.agent(agent_id_of(request))
        label = request.match_info["label"]
        block = agent.block(label)
        if block is None:
            refuse(404, f"No block with label '{label}' found for agent '{agent.id}'")
        return block

    def _json(self, agent: Agent, include: set[str] | None) -> Json:
        return shapes.agent_json(agent, include, self._core.db.pending(agent.message_ids))

    def _include(self, request: web.Request) -> set[str] | None:
        """The relations to show. letta-client gets none unless it asks; other callers get all."""
        wanted = request.query.getall("include", [])
        for index, name in enumerate(wanted):
            if name not in _RELATIONS:
                text = f"Input should be one of {_RELATIONS}"
                raise invalid("literal_error", ("query", "include", index), text, name)
        return set(wanted) if wanted or from_sdk(request) else None


def _matches(agent: Agent, request: web.Request) -> bool:
    query = request.query
    if agent.hidden:
        return False
    if query.get("name") and agent.name != query["name"]:  # the empty name is no filter
        return False
    if "query_text" in query and query["query_text"].lower() not in agent.name.lower():
        return False
    tags = query.getall("tags", [])
    if not tags:
        return True
    together = all if query.get("match_all_tags", "").lower() == "true" else any
    return together(tag in agent.tags for tag in tags)


def _check_new_name(name: object) -> None:
    """Names that were made for file systems: only creating looks at them, not changing."""
    if not isinstance(name, str):
        raise invalid("string_type", ("body", "name"), "Input should be a valid string", name)
    if name and not _NAME.match(name):
        refuse(
            500,
            f"Export failed: Agent name '{name}' contains invalid characters. Only letters (any language), digits, "
            "spaces, hyphens, underscores, and apostrophes are allowed. Please avoid filesystem-unsafe characters "
            'like: / \\ : * ? " < > |',
        )


def _model_of(body: Json) -> str:
    model = body.get("model", (body.get("llm_config") or {}).get("handle"))
    if model is None:
        refuse(400, "INVALID_ARGUMENT: Must specify either model or llm_config in request")
    if model and not re.match(r"[^/]+/.", model):
        refuse(400, "INVALID_ARGUMENT: The model handle should be in the format provider/model-name")
    if model not in MODELS:
        refuse(404, f"NOT_FOUND: Handle {model} not found, must be one of []")
    return str(model)


def _check_storable(*texts: object) -> None:
    """What PostgreSQL takes into a column: no NUL, no halves of characters."""
    for text in texts:
        if isinstance(text, str) and ("\x00" in text or text != text.encode("utf-8", "replace").decode()):
            refuse(500, "A database error occurred.")


def change_block(block: Block, body: Json) -> None:
    """Apply what a PATCH of a block says."""
    for key in ("value", "limit", "description", "read_only", "metadata", "label"):
        if key in body:
            setattr(block, key, body[key])
