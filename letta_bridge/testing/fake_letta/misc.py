"""The other routes that a bridge needs: health, organisations, models, tools, blocks."""

from aiohttp import web

from . import shapes
from .agents import MODELS, change_block
from .core import Core
from .state import Block
from .wire import ORGANISATION, answer, body_of, choice, invalid, missing, moment, number


class MiscRoutes:
    """Handlers without state of their own."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def routes(self) -> list[web.RouteDef]:
        one = "/v1/blocks/{block_id}"
        return [
            web.get("/v1/health/", self.health),
            web.get("/v1/admin/orgs/", self.organisations),
            web.get("/v1/models/", self.models),
            web.get("/v1/tools/", self.tools),
            web.get("/v1/blocks/", self.blocks),
            web.post("/v1/blocks/", self.add_block),
            web.get(one, self.block),
            web.patch(one, self.change_block),
            web.delete(one, self.remove_block),
        ]

    async def health(self, request: web.Request) -> web.Response:
        return answer({"version": "0.16.8", "status": "ok"})

    async def organisations(self, request: web.Request) -> web.Response:
        """The ids are the same on every server; ``created_at`` tells databases apart."""
        created = moment(self._core.db.created_at)
        return answer([{"id": ORGANISATION, "name": "default_org", "created_at": created, "privileged_tools": False}])

    async def models(self, request: web.Request) -> web.Response:
        return answer([shapes.model_json(handle) for handle in MODELS])

    async def tools(self, request: web.Request) -> web.Response:
        wanted = request.query.get("name")
        tools = [tool for tool in self._core.db.tools.values() if wanted in (None, tool.name)]
        return answer([shapes.tool_json(tool) for tool in tools[: number(request, "limit", 50)]])

    async def blocks(self, request: web.Request) -> web.Response:
        wanted = request.query.get("label")
        blocks = [block for block in self._core.db.blocks.values() if wanted in (None, block.label)]
        if choice(request, "order", ("asc", "desc")) == "desc":
            blocks.reverse()
        return answer([shapes.block_json(block) for block in blocks[: number(request, "limit", 50)]])

    async def add_block(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        if "label" not in body:
            raise invalid("missing", ("body", "label"), "Field required", body)
        block = Block(body["label"], body.get("value", ""))
        change_block(block, body)
        self._core.db.blocks[block.id] = block
        return answer(shapes.block_json(block))

    async def block(self, request: web.Request) -> web.Response:
        return answer(shapes.block_json(self._block(request)))

    async def change_block(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        block = self._block(request)
        change_block(block, body)
        return answer(shapes.block_json(block))

    async def remove_block(self, request: web.Request) -> web.Response:
        block = self._block(request)
        del self._core.db.blocks[block.id]
        for agent in self._core.db.agents.values():
            agent.blocks = [one for one in agent.blocks if one is not block]
        return answer(None)

    def _block(self, request: web.Request) -> Block:
        block_id = request.match_info["block_id"]
        block = self._core.db.blocks.get(block_id)
        if block is None:
            raise missing("Block", block_id)
        return block
