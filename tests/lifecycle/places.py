"""Homeservers as the tests of the mirror's life use them: the imitation and a real Synapse, behind the same calls.

People act and rooms are read past the bridge. What happens is handed to the mirror as its intake would do it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp

from letta_bridge.ids import MXID
from letta_bridge.matrix.homeserver import Homeserver
from letta_bridge.sight import Sight
from letta_bridge.testing.fake_homeserver import FakeHomeserver
from letta_bridge.testing.fake_homeserver.accounts import Requester
from letta_bridge.testing.fake_homeserver.creation import create_room
from letta_bridge.testing.fake_homeserver.errors import MatrixError
from letta_bridge.testing.stack.synapse import Account

from ..e2e.honesty_kit import Inbox

Event = Mapping[str, Any]
PEOPLE = ("alice", "bob")
"""Alice is made a moderator everywhere; both are invited to everything."""


class Refused(Exception):
    """The homeserver does not let somebody do this: the story goes on without it."""


class Place(Protocol):
    """One homeserver. Rooms that were deleted read as ``None``; people's acts raise :class:`Refused`."""

    domain: str
    bot: MXID

    def person(self, name: str) -> MXID:
        """The full id of one of :data:`PEOPLE`."""

    def connect(self, sight: Sight) -> Homeserver:
        """The bridge's own client, of a new process."""

    async def state(self, room: str) -> list[Event] | None: ...

    async def timeline(self, room: str) -> list[Event]:
        """All events of a room, oldest first."""

    async def made(self) -> list[str]:
        """The rooms that the bot created since the story began and that were not deleted."""

    async def alias(self, alias: str) -> str | None: ...

    async def profile(self, mxid: str) -> Event: ...

    async def join(self, name: str, room: str) -> None: ...

    async def leave(self, name: str, room: str) -> None: ...

    async def kick(self, name: str, room: str, whom: str) -> None: ...

    async def put(self, name: str, room: str, kind: str, content: Event, key: str = "") -> None:
        """State; ``bot`` is a name too."""

    async def create(self, name: str, body: Mapping[str, Any]) -> str: ...

    async def purge(self, room: str, *, told: bool) -> None:
        """As the server's admin."""

    async def pushed(self) -> list[dict[str, Any]]:
        """Everything that was pushed since the last call, in order."""

    def fault(self, path: str, status: int, errcode: str, times: int, after: bool) -> None:
        """Let requests of the bridge fail."""

    def calm(self) -> None:
        """No more faults."""


class FakePlace:
    """The imitation."""

    def __init__(self, fake: FakeHomeserver) -> None:
        self.fake = fake
        self.domain, self.bot = fake.domain, MXID(f"@lettabridge:{fake.domain}")
        self._queue: list[dict[str, Any]] = []
        self._faults: list[Any] = []
        fake.hold_push()
        fake.pusher.push_event = self._take  # type: ignore[method-assign]  # the test is the appservice

    def _take(self, event: Any, room: Any) -> None:
        raw = {"type": event.type, "sender": event.sender, "content": event.content, "room_id": room.room_id}
        self._queue.append(raw | ({} if event.state_key is None else {"state_key": event.state_key}))

    @classmethod
    async def new(cls, fake: FakeHomeserver) -> FakePlace:
        for name in PEOPLE:
            await fake.person(name)
        return cls(fake)

    def person(self, name: str) -> MXID:
        return MXID(f"@{name}:{self.domain}")

    def connect(self, sight: Sight) -> Homeserver:
        token = self.fake.appservice.as_token
        return Homeserver(self.fake.url, self.domain, token, self.bot, timeout=10.0, sight=sight)

    async def state(self, room: str) -> list[Event] | None:
        found = self.fake.hs.rooms.get(room)
        return None if found is None else [self._shown(event) for event in found.state.values()]

    async def timeline(self, room: str) -> list[Event]:
        return [self._shown(event) for event in self.fake.hs.rooms[room].timeline]

    @staticmethod
    def _shown(event: Any) -> Event:
        return {"type": event.type, "sender": event.sender, "content": event.content, "state_key": event.state_key}

    async def made(self) -> list[str]:
        rooms = self.fake.hs.rooms.values()
        return [room.room_id for room in rooms if room.timeline[0].sender == self.bot]

    async def alias(self, alias: str) -> str | None:
        found = self.fake.hs.aliases.get(alias)
        return None if found is None else found[0]

    async def profile(self, mxid: str) -> Event:
        user = self.fake.hs.accounts.users.get(mxid)
        return {} if user is None else user.profile

    async def join(self, name: str, room: str) -> None:
        await self._do(self.fake.people[self.person(name)].join(room))

    async def leave(self, name: str, room: str) -> None:
        await self._do(self.fake.people[self.person(name)].leave(room))

    async def kick(self, name: str, room: str, whom: str) -> None:
        await self._do(self.fake.people[self.person(name)].kick(room, whom))

    async def put(self, name: str, room: str, kind: str, content: Event, key: str = "") -> None:
        who = Requester(self.bot) if name == "bot" else self.fake.people[self.person(name)]._who
        try:
            self.fake.hs.put_state(who, room, kind, key, dict(content))
        except (MatrixError, KeyError) as error:
            raise Refused from error

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        return create_room(self.fake.hs, self.fake.people[self.person(name)]._who, dict(body))

    async def _do(self, act: Any) -> None:
        try:
            await act
        except (MatrixError, KeyError) as error:
            raise Refused from error

    async def purge(self, room: str, *, told: bool) -> None:
        self.fake.purge_room(room, told=told)

    async def pushed(self) -> list[dict[str, Any]]:
        queue, self._queue = self._queue, []
        return queue

    def fault(self, path: str, status: int, errcode: str, times: int, after: bool) -> None:
        late: Any = "disconnect" if after and not status else after
        wish = 1 if status == 429 else None
        more = {"errcode": errcode} if errcode else {}
        fault = self.fake.fail_next(
            path, status=status or 502, times=times, after_processing=late, retry_after_ms=wish, **more
        )
        self._faults.append(fault)

    def calm(self) -> None:
        for fault in self._faults:
            fault.cancel()
        self._faults.clear()


class SynapsePlace:
    """A real one. Its faults are those of the network only: requests and answers that are lost."""

    def __init__(self, url: str, domain: str, bot: MXID, token: str, http: aiohttp.ClientSession, inbox: Inbox) -> None:
        self.url, self.domain, self.bot = url, domain, bot
        self._token, self._http, self._inbox = token, http, inbox
        self._accounts: dict[str, Account] = {}
        self._root = ""
        self._before: set[str] = set()
        self._barrier = ""
        self._read = 0
        self.lost: list[tuple[str, int, bool]] = []
        """Paths, how often, and whether the request is worked on before its answer is lost."""

    async def begin(self, people: Mapping[str, Account], root: Account) -> None:
        """A clean slate: no space from earlier tests, and only rooms from now on count."""
        self._accounts, self._root = dict(people), root.access_token
        self._barrier = (await self._bot("POST", "createRoom", body={"preset": "private_chat"}))["room_id"]
        if space := await self.alias(f"#letta_space:{self.domain}"):
            await self.purge(space, told=True)
        self._before = set(await self._all_rooms())
        await self.pushed()

    def person(self, name: str) -> MXID:
        return MXID(self._accounts[name].user_id)

    def connect(self, sight: Sight) -> Homeserver:
        homeserver = Homeserver(self.url, self.domain, self._token, self.bot, timeout=30.0, sight=sight)
        session = homeserver._session
        session._middlewares = (*session._middlewares, self._lossy)
        return homeserver

    async def _lossy(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> Any:
        """The network between the two: loses the request, or the answer."""
        for place, (path, left, after) in enumerate(self.lost):
            if left and re.search(path, request.url.path):
                self.lost[place] = (path, left - 1, after)
                if after:
                    (await handler(request)).release()
                raise aiohttp.ClientConnectionError("lost on the way")
        return await handler(request)

    async def state(self, room: str) -> list[Event] | None:
        status, answer = await self._ask(self._root, "GET", "_synapse", "admin", "v1", "rooms", room, "state")
        if status == 404:
            return None
        assert status == 200, answer
        return list(answer["state"]) or None

    async def timeline(self, room: str) -> list[Event]:
        path = ("_synapse", "admin", "v1", "rooms", room, "messages")
        start, events = "", []
        while True:
            query = {"dir": "f", "limit": "500", **({"from": start} if start else {})}
            status, answer = await self._ask(self._root, "GET", *path, query=query)
            assert status == 200, answer
            events += answer["chunk"]
            if not answer["chunk"] or not answer.get("end"):
                return events
            start = answer["end"]

    async def _all_rooms(self) -> list[str]:
        path = ("_synapse", "admin", "v1", "rooms")
        status, answer = await self._ask(self._root, "GET", *path, query={"limit": "1000"})
        assert status == 200, answer
        return [room["room_id"] for room in answer["rooms"] if room["creator"] == self.bot]

    async def made(self) -> list[str]:
        return [room for room in await self._all_rooms() if room not in self._before]

    async def alias(self, alias: str) -> str | None:
        status, answer = await self._ask(self._token, "GET", "_matrix", "client", "v3", "directory", "room", alias)
        return answer["room_id"] if status == 200 else None

    async def profile(self, mxid: str) -> Event:
        status, answer = await self._ask(self._token, "GET", "_matrix", "client", "v3", "profile", mxid)
        return answer if status == 200 else {}

    async def join(self, name: str, room: str) -> None:
        await self._act(name, "POST", "join", room)

    async def leave(self, name: str, room: str) -> None:
        await self._act(name, "POST", "rooms", room, "leave")

    async def kick(self, name: str, room: str, whom: str) -> None:
        await self._act(name, "POST", "rooms", room, "kick", body={"user_id": whom})

    async def put(self, name: str, room: str, kind: str, content: Event, key: str = "") -> None:
        await self._act(name, "PUT", "rooms", room, "state", kind, key, body=content)

    async def create(self, name: str, body: Mapping[str, Any]) -> str:
        return str((await self._act(name, "POST", "createRoom", body=body))["room_id"])

    async def _act(self, name: str, method: str, *path: str, body: Any = None) -> Any:
        token = self._token if name == "bot" else self._accounts[name].access_token
        status, answer = await self._ask(token, method, "_matrix", "client", "v3", *path, body=body or {})
        if status != 200:
            raise Refused(answer)
        return answer

    async def purge(self, room: str, *, told: bool) -> None:
        path = ("_synapse", "admin", "v2", "rooms")
        status, answer = await self._ask(self._root, "DELETE", *path, room, body={"block": False, "purge": True})
        assert status == 200, answer
        async with asyncio.timeout(30):
            while True:
                status, now = await self._ask(self._root, "GET", *path, "delete_status", answer["delete_id"])
                assert now["status"] != "failed", now
                if now["status"] == "complete":
                    return
                await asyncio.sleep(0.02)

    async def pushed(self) -> list[dict[str, Any]]:
        """Synapse pushes in the order of its stream: when a message of ours arrives, all before it have."""
        word = secrets.token_hex(8)
        path = ("rooms", self._barrier, "send", "m.room.message", word)
        await self._bot("PUT", *path, body={"msgtype": "m.text", "body": word})
        async with asyncio.timeout(30):
            while True:
                events = self._inbox.events[self._read :]
                ends = [place for place, event in enumerate(events) if event["content"].get("body") == word]
                if ends:
                    self._read += ends[0] + 1
                    return [event for event in events[: ends[0]] if event["room_id"] != self._barrier]
                await asyncio.sleep(0.01)

    def fault(self, path: str, status: int, errcode: str, times: int, after: bool) -> None:
        self.lost.append((path, times, after))

    def calm(self) -> None:
        self.lost.clear()

    async def _bot(self, method: str, *path: str, body: Any = None) -> Any:
        status, answer = await self._ask(self._token, method, "_matrix", "client", "v3", *path, body=body or {})
        assert status == 200, answer
        return answer

    async def _ask(
        self, token: str, method: str, *path: str, body: Any = None, query: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        url = "/".join([self.url, *(quote(part, safe="") for part in path)])
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.request(method, url, json=body, headers=headers, params=query) as answer:
            return answer.status, await answer.json()


def content_of(state: list[Event], kind: str, key: str = "") -> Event:
    """The content of one event of a room's state; empty when there is none."""
    found = (event["content"] for event in state if event["type"] == kind and event.get("state_key") == key)
    return next(found, {})


def membership(state: list[Event], user: str) -> str:
    return str(content_of(state, "m.room.member", user).get("membership", ""))
