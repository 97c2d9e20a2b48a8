"""The bridge's calls about rooms, and the look at a room, against the imitation of both homeservers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from letta_bridge.ids import MXID, RoomID
from letta_bridge.matrix.calls import CALLS, call_of
from letta_bridge.matrix.homeserver import Homeserver, HomeserverError
from letta_bridge.testing.fake_homeserver import FakeHomeserver, MatrixError
from letta_bridge.testing.fake_homeserver.flavour import FlavourName

from .fake_homeserver_kit import BOT, Bridge, bridge
from .room_calls import ELSEWHERE, ROOMS, TEXT, Place, refusal

__all__ = ["bridge"]

TOKEN = "test-as-token"
FLAVOURS = ("synapse", "tuwunel")


@dataclass
class Alice:
    """By HTTP, as on the real server."""

    hs: FakeHomeserver
    session: aiohttp.ClientSession
    user_id: str
    token: str

    async def call(self, method: str, *path: str, body: Any = None) -> Any:
        url = "/".join([f"{self.hs.url}/_matrix/client/v3", *(quote(part, safe="") for part in path)])
        headers = {"Authorization": f"Bearer {self.token}"}
        async with self.session.request(method, url, json=body or {}, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()


@pytest.fixture
async def at(request: pytest.FixtureRequest, bridge: Bridge) -> AsyncIterator[Place]:
    flavour: FlavourName
    flavour, version = getattr(request, "param", ("synapse", "11"))
    url: str = bridge.url  # type: ignore[attr-defined]
    async with FakeHomeserver(flavour=flavour, appservice_url=url) as hs, aiohttp.ClientSession() as session:
        homeserver = Homeserver(hs.url, hs.domain, TOKEN, MXID(BOT), timeout=5)
        person = await hs.person("alice")

        async def purge(room: RoomID) -> None:
            hs.purge_room(room)

        async def pushed(fits: Callable[[dict[str, Any]], bool]) -> Any:
            await hs.wait_until(lambda: any(fits(e) for body in bridge.bodies for e in body["events"]), what="a push")
            return next(e for body in bridge.bodies for e in body["events"] if fits(e))

        place = FakePlace(
            homeserver=homeserver,
            flavour=flavour,
            version=version,
            tag="0",
            alice=Alice(hs, session, person.mxid, person.access_token),
            purge=purge,
            pushed=pushed,
            hs=hs,
        )
        for intent in (place.bot, place.puppet("p"), place.puppet("q")):
            await intent.register()
        yield place
        await homeserver.close()


@dataclass(kw_only=True)
class FakePlace(Place):
    """With the imitation behind it."""

    hs: FakeHomeserver


@pytest.mark.parametrize(
    "at", [(flavour, v) for flavour in FLAVOURS for v in ("11", "12")], indirect=True, ids="-".join
)
@pytest.mark.parametrize("case", ROOMS, ids=lambda case: case.__name__)
async def test_rooms(at: Place, case: Callable[[Place], Awaitable[None]]) -> None:
    await case(at)


@pytest.mark.parametrize("at", [(flavour, "11") for flavour in FLAVOURS], indirect=True, ids="-".join)
@pytest.mark.parametrize("case", ELSEWHERE, ids=lambda case: case.__name__)
async def test_elsewhere(at: Place, case: Callable[[Place], Awaitable[None]]) -> None:
    await case(at)


# ---- uncertain evidence: nothing of this proves that a room is gone

_STATE, _ROOMS, _ALIAS = "/state$", "/joined_rooms$", "/directory/room/"


async def _purged(at: FakePlace) -> RoomID:
    """A room that would be proven to be gone, if the homeserver answered well."""
    room = await at.room("doubt")
    at.hs.purge_room(room)
    return room


_DOUBTFUL = (
    (401, "M_UNKNOWN_TOKEN"),
    (403, ""),
    (403, "M_USER_DEACTIVATED"),
    (404, ""),
    (404, "M_UNRECOGNIZED"),
    (400, "M_UNKNOWN"),
    (429, "M_LIMIT_EXCEEDED"),
    (500, "M_UNKNOWN"),
    (502, ""),
    (504, ""),
)


@pytest.mark.parametrize("path", [_STATE, _ROOMS, _ALIAS])
async def test_a_doubtful_answer_to_one_question_leaves_it_open(at: FakePlace, path: str) -> None:
    room = await _purged(at)
    for status, errcode in _DOUBTFUL:
        limit = 0 if status == 429 else None
        fault = at.hs.fail_next(path, status=status, errcode=errcode, retry_after_ms=limit, times=None)
        seen = await at.look(room, "doubt", "p")
        assert (seen.answer, bool(seen.why)) == ("unknown", True), (status, errcode)
        assert fault.hits
        fault.cancel()
    assert (await at.look(room, "doubt", "p")).answer == "gone"


@pytest.mark.parametrize("path", [_STATE, _ROOMS])
async def test_one_doubt_among_refusals_is_enough(at: FakePlace, path: str) -> None:
    room = await _purged(at)
    at.hs.fail_next(path, status=500)
    assert (await at.look(room, "doubt", "p", "q")).answer == "unknown"
    assert (await at.look(room, "doubt", "p", "q")).answer == "gone"


@pytest.mark.parametrize("path", [_STATE, _ROOMS, _ALIAS])
async def test_a_cut_connection_leaves_it_open(at: FakePlace, path: str) -> None:
    room = await _purged(at)
    at.hs.fail_next(path, after_processing="disconnect", times=None)
    assert (await at.look(room, "doubt", "p")).answer == "unknown"


async def test_a_homeserver_that_is_away_or_slow_leaves_it_open(at: FakePlace) -> None:
    room = await _purged(at)
    slow = Homeserver(at.hs.url, at.hs.domain, TOKEN, MXID(BOT), timeout=0.2)
    quick, at.homeserver = at.homeserver, slow
    delay = at.hs.delay(_STATE, 1.0)
    assert (await at.look(room, "doubt", "p")).answer == "unknown"
    assert at.hs.count(_STATE) == 1, "nobody else is asked of a homeserver that does not answer"
    delay.cancel()
    at.homeserver = quick
    await slow.close()
    await at.hs.stop()
    seen = await at.look(room, "doubt", "p", "q")
    assert seen.answer == "unknown" and "no answer" in seen.why
    await at.hs.start()
    assert (await at.look(room, "doubt", "p", "q")).answer == "gone"


async def test_one_doubt_does_not_hide_what_another_sees(at: FakePlace) -> None:
    room = await at.room("seen")
    at.hs.fail_next(_STATE, status=500)
    seen = await at.look(room, "seen", "p")
    assert (seen.answer, seen.seen_by) == ("exists", at.puppet("p").mxid)


async def test_who_is_in_a_room_that_may_not_be_read_leaves_it_open(at: FakePlace) -> None:
    room = await at.room("listed")
    at.hs.fail_next(_STATE, status=403, errcode="M_FORBIDDEN", times=None)
    seen = await at.look(room, None, "p")
    assert seen.answer == "unknown" and "is in it" in seen.why


@pytest.mark.parametrize("answer", [[], {}, [{"type": "m.room.name", "state_key": "", "content": {}}], [5], "x", None])
async def test_a_state_without_a_beginning_is_no_rooms_state(
    at: FakePlace, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    async with _Answering({_STATE: answer}) as url:
        odd = Homeserver(url, at.hs.domain, TOKEN, MXID(BOT))
        at.homeserver = odd
        assert (await at.look("!some:test.local", None, "p")).answer == "unknown"
        await odd.close()


@pytest.mark.parametrize("answer", [{}, [], None, {"joined_rooms": None}, {"joined_rooms": [5]}, {"joined_rooms": {}}])
async def test_a_list_of_rooms_that_is_none_leaves_it_open(at: FakePlace, answer: Any) -> None:
    async with _Answering({_STATE: (403, {"errcode": "M_FORBIDDEN", "error": ""}), _ROOMS: answer}) as url:
        odd = Homeserver(url, at.hs.domain, TOKEN, MXID(BOT))
        at.homeserver = odd
        assert (await at.look("!some:test.local", None)).answer == "unknown"
        assert (await refusal(odd.bot.joined_rooms())).passing
        await odd.close()


class _Answering:
    """A server with prepared answers: a proxy's page, another program, a homeserver gone mad."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers

    async def __aenter__(self) -> str:
        async def answer(request: web.Request) -> web.Response:
            found = next(value for path, value in self._answers.items() if request.path.endswith(path.rstrip("$")))
            status, body = found if isinstance(found, tuple) else (200, found)
            return web.json_response(body, status=status)

        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


# ---- the other calls, when answers are bad or late


async def test_a_call_whose_answer_was_lost_may_be_repeated(at: FakePlace) -> None:
    room = await at.room("lost")
    p = at.puppet("p")
    for path, call in (
        ("/kick$", lambda: at.bot.kick(room, p.mxid)),
        ("/forget$", lambda: p.forget(room)),
        (_ALIAS, lambda: at.bot.set_alias(at.alias("more"), room)),
        (_ALIAS, lambda: at.bot.delete_alias(at.alias("more"))),
        ("/displayname$", p.clear_profile),
    ):
        fault = at.hs.fail_next(path, after_processing="disconnect")
        with contextlib.suppress(HomeserverError):  # of a PUT or DELETE the HTTP client makes the repeat itself
            await call()
        assert fault.hits == 1
        await call()


async def test_what_is_not_definite_is_an_error(at: FakePlace) -> None:
    room = await at.room("errors")
    bot, p = at.bot, at.puppet("p")
    for status, errcode in ((404, ""), (404, "M_UNRECOGNIZED"), (500, "M_UNKNOWN"), (401, "M_UNKNOWN_TOKEN")):
        at.hs.fail_next(".", status=status, errcode=errcode, times=None)
        for call in (
            bot.profile(p.mxid),
            bot.delete_alias(at.alias("errors")),
            bot.get_state(room, "org.example.none"),
            bot.joined_rooms(),
            bot.kick(room, p.mxid),
            bot.forget(room),
        ):
            assert (await refusal(call)).status == status
        at.hs.faults.failing.clear()
    assert await bot.membership(room, p.mxid) == "join"
    for status, errcode in ((401, "M_UNKNOWN_TOKEN"), (401, ""), (502, ""), (404, "")):
        at.hs.fail_next("/deactivate$", status=status, errcode=errcode)
        assert (await refusal(p.deactivate())).status == status
    at.hs.fail_next("/deactivate$", status=403, errcode="M_FORBIDDEN")
    assert await p.deactivate() is False


async def test_a_limit_is_waited_out_where_nobody_waits(at: FakePlace) -> None:
    room = await at.room("limit")
    for path in ("/kick$", "/joined_rooms$", "/profile/"):
        at.hs.fail_next(path, status=429, retry_after_ms=0)
    await at.bot.kick(room, at.puppet("p").mxid)
    assert await at.bot.joined_rooms() == [room]
    assert await at.bot.profile(at.puppet("p").mxid)


def test_every_call_has_a_word() -> None:
    rooms = "/_matrix/client/v3/rooms/%21a%3Ab/"
    words = {
        rooms + "kick": "kick",
        rooms + "forget": "forget",
        rooms + "state/m.room.create": "state",
        rooms + "elsewhere": "other",
        "/_matrix/client/v3/joined_rooms": "read",
        "/_matrix/client/v3/directory/room/%23a%3Ab": "alias",
        "/_matrix/client/v3/account/deactivate": "account",
        "/_matrix/client/v3/profile/%40a%3Ab": "profile",
    }
    assert {path: call_of(path) for path in words} == words
    assert set(words.values()) <= CALLS


# ---- what people and admins do to rooms in the imitation


async def test_people_change_rooms_by_the_rooms_rules(at: FakePlace) -> None:
    room = await at.room("people", power=50)
    alice = await at.hs.person("alice")
    await alice.set_state(room, "m.room.name", {"name": "Hers"})
    for kind in ("m.room.power_levels", "m.room.tombstone", "m.room.history_visibility"):
        with pytest.raises(MatrixError):
            await alice.set_state(room, kind, {})
    await alice.kick(room, at.puppet("p").mxid, "go")
    with pytest.raises(MatrixError):
        await alice.kick(room, BOT)
    assert alice.members(room) == [BOT, at.puppet("q").mxid, alice.mxid]
    assert await at.pushed(lambda event: event.get("state_key") == at.puppet("p").mxid and "reason" in event["content"])


async def test_a_purged_room_leaves_the_others_alone(at: FakePlace) -> None:
    one, two = await at.room("one"), await at.room("two")
    alice = await at.hs.person("alice")
    await alice.send(one, "lost")
    await alice.send(two, "kept")
    at.hs.purge_room(one)
    assert alice.rooms() == [two] and alice.timeline(one) == []
    assert await at.bot.joined_rooms() == [two]
    assert [message.body for message in alice.messages(two)] == ["kept"]
    assert await at.bot.resolve_alias(at.alias("two")) == two
    with pytest.raises(MatrixError):
        await alice.send(one, "too late")
    with pytest.raises(KeyError):
        at.hs.purge_room(one)


async def test_an_appservice_hears_of_a_purge_or_does_not(at: FakePlace) -> None:
    room, silent = await at.room("told"), await at.room("silent")
    at.hs.purge_room(silent, told=False)
    at.hs.purge_room(room)
    await at.hs.wait_pushed()
    departures = [
        (event["room_id"], event["sender"])
        for transaction in at.hs.transactions
        for event in transaction.events
        if event["type"] == "m.room.member" and event["content"]["membership"] == "leave"
    ]
    everybody = (BOT, at.puppet("p").mxid, at.puppet("q").mxid, at.alice.user_id)
    assert departures == [(room, user) for user in everybody]


async def test_only_the_appservice_says_when(at: FakePlace) -> None:
    room = await at.room("when")
    headers = {"Authorization": f"Bearer {(await at.hs.person('alice')).access_token}"}
    url = f"{at.hs.url}/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/t"
    async with aiohttp.ClientSession() as session:
        for number, ts in enumerate(("12345", "nonsense")):
            async with session.put(url + str(number), params={"ts": ts}, json=TEXT, headers=headers) as answer:
                assert answer.status == 200
                event = await at.bot.event(room, (await answer.json())["event_id"])
                assert event["origin_server_ts"] > 10**12
