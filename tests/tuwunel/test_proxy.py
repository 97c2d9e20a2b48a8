"""The rewriting proxy makes a real Synapse answer and push like Tuwunel, row by row of docs/homeservers.md."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import pytest
import pytest_asyncio

from letta_bridge.testing.fake_tuwunel import TuwunelProxy
from letta_bridge.testing.stack.synapse import Account
from tests.conftest import RealSynapse

from ..integration.fake_homeserver_kit import Bridge

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


class Client:
    """Calls through the proxy: as the appservice, or (``token``) as a person."""

    def __init__(self, url: str, token: str, domain: str) -> None:
        self._url, self._token, self.domain = url, token, domain
        self.http = aiohttp.ClientSession()
        self.bot = f"@lettabridge:{domain}"

    def ghost(self) -> str:
        """A puppet that nobody has heard of."""
        return f"@letta_{secrets.token_hex(6)}:{self.domain}"

    async def __call__(
        self, user: str | None, method: str, path: str, body: Any = None, token: str = "", **query: str
    ) -> tuple[int, Any]:
        params = {**query, **({"user_id": user} if user else {})}
        headers = {"Authorization": f"Bearer {token or self._token}"}
        data = {} if body is None and method != "GET" else body
        url = f"{self._url}/_matrix/{path if path.startswith('media') else 'client/' + path}"
        async with self.http.request(method, url, params=params, json=data, headers=headers) as answer:
            return answer.status, await answer.json()

    async def register(self) -> str:
        """A new puppet that exists."""
        user = self.ghost()
        name = user[1:].partition(":")[0]
        body = {"type": "m.login.application_service", "username": name, "inhibit_login": True}
        assert (await self(None, "POST", "v3/register", body))[0] == 200
        return user

    async def room(self, user: str, **body: Any) -> str:
        """A new room of this user."""
        status, answer = await self(user, "POST", "v3/createRoom", body)
        assert status == 200, answer
        return quote(answer["room_id"], safe="")

    async def say(self, user: str, room: str, text: str, txn_id: str, **query: str) -> str:
        """A text; its event id."""
        body = {"msgtype": "m.text", "body": text}
        status, answer = await self(user, "PUT", f"v3/rooms/{room}/send/m.room.message/{txn_id}", body, **query)
        assert status == 200, answer
        return str(answer["event_id"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def recorder(proxy: TuwunelProxy) -> AsyncIterator[Bridge]:
    """An appservice behind the proxy that records what it is given."""
    made = Bridge()
    proxy.appservice_url = await made.start()
    yield made
    await made.runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def call(synapse: RealSynapse, proxy: TuwunelProxy, recorder: Bridge) -> AsyncIterator[Client]:
    client = Client(proxy.url, proxy.tuwunel.appservice.as_token, synapse.domain)
    yield client
    await client.http.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alice(synapse: RealSynapse) -> Account:
    return await synapse.server.register(f"proxied_{secrets.token_hex(4)}")


async def test_who_acts(call: Client, alice: Account) -> None:
    """Rows 16 to 19, and 28."""
    unknown = call.ghost()
    assert (await call(unknown, "PUT", "v3/devices/NEW", {"display_name": "x"}))[1]["errcode"] == "M_INVALID_PARAM"
    assert (await call(unknown, "GET", "v3/account/whoami"))[0] == 200
    room = await call.room(unknown)
    assert (await call(unknown, "PUT", "v3/devices/NEW", {"display_name": "x"}))[1]["errcode"] == "M_INVALID_PARAM"
    body = {"type": "m.login.application_service", "username": unknown[1:].split(":")[0], "inhibit_login": True}
    assert await call(None, "POST", "v3/register", body) == (200, {"user_id": unknown, "home_server": call.domain})
    assert (await call(None, "POST", "v3/register", body))[1]["errcode"] == "M_USER_IN_USE"
    name = (await call(None, "GET", f"v3/profile/{unknown}"))[1]["displayname"]
    assert name == unknown[1:].split(":")[0] + " 💕"
    assert (await call(unknown, "PUT", "v3/devices/NEW", {"display_name": "x"}))[0] == 201
    await call.say(unknown, room, "with a device", secrets.token_hex(4), device_id="NEW")
    await call.say(unknown, room, "its unstable name", secrets.token_hex(4), **{"org.matrix.msc3202.device_id": "NEW"})
    status, answer = await call(unknown, "GET", f"v3/rooms/{room}/state", device_id="OTHER")
    assert (status, answer["errcode"]) == (400, "M_INVALID_PARAM") and "device" in answer["error"]
    assert await call(alice.user_id, "GET", "v3/account/whoami") == (
        400,
        {"errcode": "M_EXCLUSIVE", "error": "User is not in namespace."},
    )
    status, answer = await call(None, "GET", "v3/account/whoami", token=alice.access_token)
    assert (status, answer["user_id"]) == (200, alice.user_id)


async def test_rooms(call: Client, alice: Account) -> None:
    """Rows 20 to 22, 31, 37, 38, 43."""
    ghost, other = await call.register(), await call.register()
    empty = {"type": "org.example.empty", "state_key": "", "content": {}}
    room = await call.room(ghost, invite=[alice.user_id, "@nobody:elsewhere.example"], initial_state=[empty])
    assert "%3A" in room, "not of version 11"
    versions = (await call(ghost, "GET", "v3/capabilities"))[1]["capabilities"]["m.room_versions"]
    assert versions["default"] == "11"
    assert (await call(None, "POST", f"v3/rooms/{room}/join", token=alice.access_token))[0] == 200
    status, answer = await call(ghost, "POST", f"v3/rooms/{room}/invite", {"user_id": alice.user_id})
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN") and answer["error"].startswith("Auth check failed")
    assert (await call(ghost, "GET", f"v3/rooms/{room}/state/org.example.empty"))[0] == 404
    name = f"v3/rooms/{room}/state/m.room.create"
    assert (await call(ghost, "GET", name))[0] == 200
    assert (await call(other, "GET", name)) == (404, {"errcode": "M_NOT_FOUND", "error": "Event not found."})
    assert (await call(other, "GET", f"v3/rooms/{room}/state"))[0] == 403
    assert (await call(other, "GET", f"v3/rooms/{room}/joined_members"))[0] == 403
    assert set((await call(ghost, "GET", f"v3/rooms/{room}/joined_members"))[1]["joined"]) == {ghost, alice.user_id}
    assert await call(other, "POST", f"v3/rooms/{room}/leave") == (200, {})
    assert await call(other, "POST", "v3/rooms/!never:elsewhere.example/leave") == (200, {})


async def test_transaction_ids(call: Client) -> None:
    """Rows 23 to 25: they count by user and device, in every room, and for messages to devices too."""
    ghost, other = await call.register(), await call.register()
    first, second = await call.room(ghost), await call.room(ghost, preset="public_chat")
    assert (await call(other, "POST", f"v3/rooms/{second}/join"))[0] == 200
    txn_id = secrets.token_hex(4)
    event_id = await call.say(ghost, first, "one", txn_id)
    assert await call.say(ghost, first, "one", txn_id) == event_id
    assert await call.say(ghost, second, "never sent", txn_id) == event_id
    assert await call.say(other, second, "another's", txn_id) != event_id
    assert (await call(ghost, "PUT", "v3/devices/D", {}))[0] == 201
    with_device = await call.say(ghost, first, "by a device", txn_id, device_id="D")
    assert with_device != event_id
    assert await call.say(ghost, second, "never sent either", txn_id, device_id="D") == with_device
    for used, status in ((txn_id, 200), (secrets.token_hex(4), 400)):  # what is in the body is not even looked at
        assert (await call(ghost, "PUT", f"v3/sendToDevice/m.dummy/{used}", {}))[0] == status
    _, page = await call(ghost, "GET", f"v3/rooms/{second}/messages", dir="b")
    assert [e["content"]["body"] for e in page["chunk"] if e["type"] == "m.room.message"] == ["another's"]


async def test_redactions_typing_hierarchies_and_media(call: Client, alice: Account) -> None:
    """Rows 26, 32 to 34, 36."""
    ghost = await call.register()
    room = await call.room(ghost, invite=[alice.user_id])
    assert (await call(None, "POST", f"v3/rooms/{room}/join", token=alice.access_token))[0] == 200
    event_id = await call.say(ghost, room, "one", secrets.token_hex(4))
    redact = f"v3/rooms/{room}/redact/{event_id}/again"
    ids = [(await call(ghost, "PUT", redact, {"reason": "r", "x": 1}, ts="5"))[1]["event_id"] for _ in range(2)]
    assert ids[0] != ids[1]
    _, redaction = await call(ghost, "GET", f"v3/rooms/{room}/event/{ids[0]}")
    assert redaction["content"] == {"reason": "r", "redacts": event_id} and redaction["origin_server_ts"] > 5

    _, before = await call(None, "GET", "v3/sync", token=alice.access_token)
    typing = f"v3/rooms/{room}/typing/{ghost}"
    assert (await call(ghost, "PUT", typing, {"typing": True, "timeout": 1}))[0] == 200
    after = await call(None, "GET", "v3/sync", token=alice.access_token, since=before["next_batch"], timeout="2000")
    assert ghost in str(after[1]["rooms"]["join"]), "a millisecond would be over by now"

    space = await call.room(ghost, creation_content={"type": "m.space"})
    path = f"v3/rooms/{space}/state/m.space.child/{room}"
    assert (await call(ghost, "PUT", path, {"via": [call.domain]}))[0] == 200
    _, page = await call(ghost, "GET", f"v1/rooms/{space}/hierarchy", limit="1")
    assert len(page["rooms"]) == 2, "the proxy asks for ten"

    assert (await call(ghost, "GET", "media/v3/config"))[0] == 403
    assert (await call(ghost, "GET", f"media/v3/download/{call.domain}/x"))[0] == 403
    assert (await call(ghost, "GET", "v1/media/config"))[1] == {"m.upload.size": 25_165_824}


async def test_what_synapse_pushes_comes_as_tuwunel_pushes(call: Client, alice: Account, recorder: Bridge) -> None:
    """Rows 1, 2, 10, 11, 14, 15: and nobody is asked for."""
    ghost = await call.register()
    room = await call.room(ghost, invite=[alice.user_id])
    assert (await call(None, "POST", f"v3/rooms/{room}/join", token=alice.access_token))[0] == 200
    txn_id = secrets.token_hex(4)
    sent = await call.say(ghost, room, "from a puppet", txn_id)
    unknown = call.ghost()
    invite = f"v3/rooms/{room}/invite"
    assert (await call(None, "POST", invite, {"user_id": unknown}, token=alice.access_token))[0] == 200

    async def pushed(what: Any, seconds: float = 20) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while True:
                recorder.arrived.clear()
                for body in recorder.bodies:
                    for one in (*body["events"], *body.get("ephemeral", ())):
                        if what(one):
                            return one  # type: ignore[no-any-return]
                await recorder.arrived.wait()

    event = await pushed(lambda one: one.get("event_id") == sent)
    assert set(event) == {"content", "event_id", "origin_server_ts", "room_id", "sender", "type", "unsigned"}
    assert event["unsigned"] == {"transaction_id": txn_id}
    invited = await pushed(lambda one: one.get("state_key") == unknown)
    assert "invite_room_state" not in invited["unsigned"] and "age" not in invited["unsigned"]

    def is_typing(one: dict[str, Any]) -> bool:
        return one["type"] == "m.typing" and alice.user_id in one["content"]["user_ids"]

    typing: dict[str, Any] = {}
    path = f"v3/rooms/{room}/typing/{alice.user_id}"
    for _ in range(6):  # Synapse does not push every change of it
        for on in (False, True):
            await call(None, "PUT", path, {"typing": on, "timeout": 20_000}, token=alice.access_token)
        with contextlib.suppress(TimeoutError):
            typing = await pushed(is_typing, 4)
            break
    assert typing["room_id"] == unquote(room)
    assert recorder.asked == []
    assert all(len(txn) == 43 for txn, *_ in recorder.raw)
