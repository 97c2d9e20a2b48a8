"""A client of a Letta, fake or real, for the tests of the fake."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

Json = dict[str, Any]
SEARCH = '#tool conversation_search {"query": "x"}'
REACT = {"client_tools": [{"name": "react", "description": "d", "parameters": {"type": "object", "properties": {}}}]}


async def until(check: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.01)


@dataclass
class Target:
    """A Letta, fake or real, and a client of it."""

    url: str
    session: aiohttp.ClientSession
    redis: bool = False
    _agents: list[str] = field(default_factory=list)

    async def call(self, method: str, path: str, body: Any = None, **params: Any) -> tuple[int, Any]:
        # the User-Agent of aiohttp makes this a caller that is not letta-client
        async with self.session.request(method, self.url + path, json=body, params=params) as response:
            return response.status, await response.json()

    async def get(self, path: str, **params: Any) -> Any:
        status, value = await self.call("GET", path, **params)
        assert status == 200, value
        return value

    async def post(self, path: str, body: Any = None, **params: Any) -> Any:
        status, value = await self.call("POST", path, body, **params)
        assert status == 200, value
        return value

    @asynccontextmanager
    async def open(self, path: str, body: Json) -> AsyncIterator[AsyncIterator[Json]]:
        """A stream whose events come one by one; leaving it drops the connection."""
        async with self.session.post(self.url + path, json=body) as response:
            assert response.status == 200, await response.text()

            async def events() -> AsyncIterator[Json]:
                async for line in response.content:
                    if line.startswith(b"data: "):
                        text = line.decode().removeprefix("data: ").strip()
                        yield {"message_type": "DONE"} if text == "[DONE]" else json.loads(text)

            yield events()

    async def stream(self, path: str, body: Json) -> list[Json]:
        async with self.open(path, body) as events:
            return [event async for event in events]

    async def begin(self, path: str, body: Json) -> str:
        """Start a stream, walk away, and say which run it is."""
        async with self.open(path, body) as events:
            return str((await anext(events))["run_id"])

    async def agent(self, name: str = "subject", **more: Any) -> str:
        block = {"label": "persona", "value": "I am"}
        made = {"name": name, "model": "openai-proxy/gpt-4o", "memory_blocks": [block], **more}
        agent = await self.post("/v1/agents/", made)
        self._agents.append(agent["id"])
        if agent["managed_group"]:
            self._agents.extend(agent["managed_group"]["agent_ids"])
        return str(agent["id"])

    async def conversation(self, agent: str) -> str:
        made = await self.post("/v1/conversations/", {}, agent_id=agent)
        return f"/v1/conversations/{made['id']}"

    async def run_is(self, run: str, status: str) -> None:
        async def check() -> bool:
            return bool((await self.get(f"/v1/runs/{run}"))["status"] == status)

        await until(check)

    async def clean(self) -> None:
        for agent in self._agents:
            await self.call("DELETE", f"/v1/agents/{agent}")


def user(text: str, otid: str | None = None, **more: Any) -> Json:
    message = {"role": "user", "content": text, **({"otid": otid} if otid else {})}
    return {"messages": [message], **more}


def answer(request: Json, **how: Any) -> Json:
    approvals = [{"tool_call_id": request["tool_call"]["tool_call_id"], **how}]
    return {"messages": [{"type": "approval", "approvals": approvals}], **REACT}


def kinds(items: list[Json]) -> list[str]:
    return [item["message_type"].removesuffix("_message") for item in items]


def texts(items: list[Json]) -> list[str]:
    return [item["content"] for item in items if item["message_type"] in ("user_message", "assistant_message")]
