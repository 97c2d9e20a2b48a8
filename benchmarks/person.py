"""A person with a client of their own: long polling of ``/sync``; the same code whoever answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from letta_bridge.testing.stack.synapse import Account

Listener = Callable[[float, str, dict[str, Any]], None]
"""Called with the moment (``time.monotonic``) at which an event was there, its room, and the event."""

_FILTER = json.dumps({"room": {"timeline": {"limit": 100}}})


class Person:
    """``async with Person(url, account) as person``: it syncs until the block ends."""

    def __init__(self, url: str, account: Account) -> None:
        self.mxid = account.user_id
        self._base = f"{url}/_matrix/client/v3"
        self._headers = {"Authorization": f"Bearer {account.access_token}"}
        self._listeners: list[Listener] = []
        self._txns = itertools.count()
        self._task: asyncio.Task[None] | None = None
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers=self._headers, connector=aiohttp.TCPConnector(limit=0))
        first = await self._sync(None)
        self._task = asyncio.create_task(self._poll(first["next_batch"]))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._http.close()

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Any:
        """Tell a listener of every event of every room."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def create_dm(self, puppet: str) -> str:
        """A room with a puppet that is invited."""
        body = {"preset": "trusted_private_chat", "is_direct": True, "invite": [puppet]}
        return str((await self._call("POST", "createRoom", body))["room_id"])

    async def say(self, room: str, text: str) -> str:
        """Send a text; returns its event id."""
        path = f"rooms/{quote(room)}/send/m.room.message/{time.time_ns()}-{next(self._txns)}"
        return str((await self._call("PUT", path, {"msgtype": "m.text", "body": text}))["event_id"])

    async def ask(self, room: str, puppet: str, text: str, seconds: float = 30) -> float:
        """Say something; seconds from before the request until the answer to it was seen."""
        answered: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        def look(at: float, where: str, event: dict[str, Any]) -> None:
            if where == room and event.get("sender") == puppet and names(event, text) and not answered.done():
                answered.set_result(at)

        with self.listening(look):
            begun = time.monotonic()
            await self.say(room, text)
            async with asyncio.timeout(seconds):
                return await answered - begun

    async def state(self, room: str) -> list[dict[str, Any]]:
        """The state of a room."""
        answer = await self._call("GET", f"rooms/{quote(room)}/state")
        assert isinstance(answer, list)
        return answer

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        async with self._http.request(method, f"{self._base}/{path}", json=body) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def _sync(self, since: str | None) -> dict[str, Any]:
        query = {"filter": _FILTER, "timeout": "0" if since is None else "30000"}
        if since is not None:
            query["since"] = since
        async with self._http.get(f"{self._base}/sync", params=query) as answer:
            answer.raise_for_status()
            return dict(json.loads(await answer.read()))

    async def _poll(self, since: str) -> None:
        while True:
            answer = await self._sync(since)
            now = time.monotonic()
            since = answer["next_batch"]
            for room, part in answer.get("rooms", {}).get("join", {}).items():
                for event in part["timeline"]["events"]:
                    for listener in list(self._listeners):
                        listener(now, room, event)


def names(event: dict[str, Any], text: str) -> bool:
    """Whether a message names a text, whole words."""
    return event.get("type") == "m.room.message" and text in str(event["content"].get("body", "")).split()
