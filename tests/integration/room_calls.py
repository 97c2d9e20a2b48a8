"""What the bridge's calls about rooms come to: the same tests for the imitation and for a real Synapse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from letta_bridge.ids import MXID, RoomID
from letta_bridge.matrix.homeserver import Homeserver, HomeserverError, Intent
from letta_bridge.matrix.look import Look, look

TEXT = {"msgtype": "m.text", "body": "x"}


class Person(Protocol):
    """Somebody who has nothing to do with the bridge; refusals raise."""

    @property
    def user_id(self) -> str:
        """Their full id."""

    async def call(self, method: str, *path: str, body: Any = None) -> Any:
        """One request below ``/_matrix/client/v3``."""


@dataclass(kw_only=True)
class Place:
    """A homeserver, the bridge's calls to it, and Alice. Two puppets are registered, a third is not."""

    homeserver: Homeserver
    flavour: str
    version: str
    tag: str
    alice: Person
    purge: Callable[[RoomID], Awaitable[None]]
    """What a server's admin does."""
    pushed: Callable[[Callable[[dict[str, Any]], bool]], Awaitable[Any]]
    """Waits until the appservice was told of an event that fits."""

    @property
    def bot(self) -> Intent:
        return self.homeserver.bot

    def puppet(self, name: str) -> Intent:
        """One of ``p``, ``q`` and (unregistered) ``u``."""
        return self.homeserver.intent(MXID(f"@letta_{name}{self.tag}:{self.homeserver.domain}"))

    def alias(self, name: str) -> str:
        return f"#letta_{name}{self.tag}:{self.homeserver.domain}"

    async def room(self, name: str, *, power: int = 100) -> RoomID:
        """The bot's room with both puppets and Alice, who has this much power."""
        users: dict[str, int] = {self.alice.user_id: power}
        if self.version != "12":
            users[self.bot.mxid] = 100
        guests = [self.puppet("p").mxid, self.puppet("q").mxid, self.alice.user_id]
        room = await self.bot.create_room(
            {
                "room_version": self.version,
                "preset": "private_chat",
                "room_alias_name": self.alias(name)[1:].partition(":")[0],
                "invite": guests,
                "power_level_content_override": {"users": users},
            }
        )
        for puppet in "pq":
            await self.puppet(puppet).join(room)
        await self.alice.call("POST", "join", room)
        return room

    async def look(self, room: str, name: str | None, *puppets: str) -> Look:
        alias = None if name is None else self.alias(name)
        return await look(self.homeserver, RoomID(room), alias, [self.puppet(puppet).mxid for puppet in puppets])

    async def depart(self, intent: Intent, room: RoomID) -> None:
        """Leave and forget."""
        await intent.leave(room)
        await intent.forget(room)


async def refusal(call: Awaitable[Any]) -> HomeserverError:
    """The error of a call that must fail."""
    try:
        answer = await call
    except HomeserverError as error:
        return error
    raise AssertionError(f"it should have been refused, but: {answer!r}")


# ---- looking


async def what_is_there(at: Place) -> None:
    room = await at.room("there")
    seen = await at.look(room, "there", "p")
    assert (seen.answer, seen.seen_by, seen.successor, seen.current) == ("exists", at.bot.mxid, None, True)
    assert seen.state and all(event["room_id"] == room for event in seen.state)
    assert (await at.look(room, None)).answer == "exists"
    assert (await at.look(room, "of another room", "u")).answer == "exists", "the alias proves nothing against reading"


async def who_was_put_out_knows_less_than_who_is_in(at: Place) -> None:
    room = await at.room("kicked", power=100)
    everybody = [at.puppet("p").mxid, at.puppet("q").mxid]
    if at.version == "12":  # nobody has power over a creator
        await at.bot.leave(room)
    else:
        await at.bot.set_state(
            room, "m.room.power_levels", "", {"users": {at.alice.user_id: 100, at.bot.mxid: 0}, "users_default": 0}
        )
        await at.alice.call("POST", "rooms", room, "kick", body={"user_id": at.bot.mxid})
    seen = await at.look(room, "kicked", "p")
    assert (seen.answer, seen.seen_by, seen.current) == ("exists", everybody[0], True), "a puppet is still in"
    for user in everybody:
        await at.alice.call("POST", "rooms", room, "kick", body={"user_id": user})
    await at.alice.call("PUT", "rooms", room, "state", "m.room.name", body={"name": "after"})
    seen = await at.look(room, "kicked", "p", "q")
    assert (seen.answer, seen.seen_by, seen.current) == ("exists", at.bot.mxid, False), "they read its past"
    assert "as it was" in seen.why
    assert not any(event["type"] == "m.room.name" for event in seen.state or ())


async def a_room_that_nobody_of_ours_sees_is_gone_only_when_its_name_is(at: Place) -> None:
    room = await at.room("left")
    for intent in (at.bot, at.puppet("p"), at.puppet("q")):
        await at.depart(intent, room)
    seen = await at.look(room, "left", "p", "q")
    assert seen.answer == "unknown", "Alice is still in there"
    assert at.alias("left") in seen.why
    other = await at.bot.create_room({"room_version": at.version})
    await at.bot.delete_alias(at.alias("left"))
    assert (await at.look(room, "left", "p", "q")).answer == "gone"
    await at.bot.set_alias(at.alias("left"), other)
    assert (await at.look(room, "left", "p", "q")).answer == "gone", "its name leads elsewhere"


async def one_who_is_still_in_saves_a_room(at: Place) -> None:
    room = await at.room("one")
    for intent in (at.bot, at.puppet("p")):
        await at.depart(intent, room)
    await at.bot.delete_alias(at.alias("one"))
    seen = await at.look(room, "one", "p", "q")
    assert (seen.answer, seen.seen_by) == ("exists", at.puppet("q").mxid)


async def what_never_was_is_gone(at: Place) -> None:
    for room in (f"!never{at.tag}:{at.homeserver.domain}", "!" + "A" * 43):
        assert (await at.look(room, None, "p", "q")).answer == "gone"
        assert (await at.look(room, "never", "p", "q")).answer == "gone"
    for nonsense in ("", "garbage", at.alias("never")):
        assert (await at.look(nonsense, None, "p")).answer == "unknown", "a broken id is no proof"


async def what_was_purged_is_gone(at: Place) -> None:
    room = await at.room("purged")
    await at.puppet("p").leave(room)
    await at.purge(room)
    for name in ("purged", None):
        seen = await at.look(room, name, "p", "q")
        assert (seen.answer, seen.state, seen.seen_by) == ("gone", None, None)
    assert await at.bot.resolve_alias(at.alias("purged")) is None
    assert room not in await at.puppet("q").joined_rooms()
    assert (await refusal(at.puppet("q").state(room))).status == 403
    for call in (
        at.bot.join(room),
        at.bot.send(room, "m.room.message", TEXT, f"purged{at.tag}"),
        at.bot.invite(room, at.puppet("p").mxid),
        at.bot.kick(room, at.puppet("p").mxid),
        at.bot.set_state(room, "m.room.name", "", {"name": "x"}),
        at.bot.messages_back(room, None, 5),
        at.bot.joined_members(room),
        at.bot.get_state(room, "m.room.name"),
    ):
        error = await refusal(call)
        assert error.status in (403, 404) and not error.passing, error
    await at.bot.leave(room)
    await at.bot.forget(room)
    again = await at.bot.create_room(
        {"room_version": at.version, "room_alias_name": at.alias("purged")[1:].split(":")[0]}
    )
    assert again != room


async def a_purge_does_not_stop_the_pushing(at: Place) -> None:
    """That the departures are pushed is not promised by the real servers; what comes after them is pushed."""
    room = await at.room("told")
    await at.purge(room)
    other = await at.bot.create_room({"name": "next"})
    assert await at.pushed(lambda event: event["room_id"] == other and event["type"] == "m.room.name")


async def an_upgraded_room_is_there_and_names_the_next(at: Place) -> None:
    room, following = await at.room("old"), await at.bot.create_room({"room_version": at.version})
    await at.bot.set_state(room, "m.room.tombstone", "", {"body": "moved", "replacement_room": following})
    seen = await at.look(room, "old", "p")
    assert (seen.answer, seen.successor) == ("exists", following)
    await at.bot.set_state(room, "m.room.tombstone", "", {"body": "nowhere", "replacement_room": 5})
    seen = await at.look(room, "old", "p")
    assert (seen.answer, seen.successor) == ("exists", None)


async def a_user_who_does_not_exist_proves_nothing(at: Place) -> None:
    room = f"!never{at.tag}:{at.homeserver.domain}"
    seen = await at.look(room, None, "p", "u")
    assert seen.answer == ("unknown" if at.flavour == "synapse" else "gone")  # Tuwunel lets it act, and it is nowhere


# ---- membership


async def kicking(at: Place) -> None:
    room = await at.room("kick")
    p, q = at.puppet("p"), at.puppet("q")
    assert (await refusal(q.kick(room, p.mxid))).status == 403, "a puppet has no power"
    await at.bot.kick(room, p.mxid, "because")
    member = await at.bot.get_state(room, "m.room.member", p.mxid)
    assert member is not None and (member["membership"], member["reason"]) == ("leave", "because")
    kicked = {"room_id": room, "sender": at.bot.mxid, "state_key": p.mxid, "type": "m.room.member"}
    assert await at.pushed(lambda event: kicked.items() <= event.items() and event["content"]["membership"] == "leave")
    await at.bot.kick(room, p.mxid)
    await at.bot.kick(room, at.puppet("u").mxid)
    await at.bot.invite(room, p.mxid)
    await at.bot.kick(room, p.mxid, "taken back")
    assert await at.bot.membership(room, p.mxid) == "leave"
    assert (await refusal(p.kick(room, q.mxid))).status == 403, "who is out can tell nothing"
    assert await at.bot.membership(room, q.mxid) == "join"
    await q.leave(room)
    assert (await refusal(p.kick(room, q.mxid))).status == 403, "not even of others who are out"


async def rooms_of_ones_own(at: Place) -> None:
    room = await at.room("own")
    p = at.puppet("p")
    assert room in await p.joined_rooms()
    assert (await refusal(p.forget(room))).status == 400
    await p.leave(room)
    assert room not in await p.joined_rooms()
    assert (await p.state(room)) != []
    await p.forget(room)
    await p.forget(room)
    assert (await refusal(p.state(room))).status == 403
    await p.forget(RoomID(f"!never:{at.homeserver.domain}"))


async def state_with_three_answers(at: Place) -> None:
    room = await at.room("state")
    kind = "org.example.marker"
    assert await at.bot.get_state(room, kind) is None
    assert await at.bot.get_state(room, kind, "a/b c") is None
    await at.bot.set_state(room, kind, "a/b c", {"k": 1})
    assert await at.puppet("p").get_state(room, kind, "a/b c") == {"k": 1}
    await at.bot.set_state(room, kind, "", {})
    assert await at.bot.get_state(room, kind) == {}
    await at.depart(at.puppet("p"), room)
    for missing in (kind, "org.example.none", "m.room.create"):
        error = await refusal(at.puppet("p").get_state(room, missing))
        assert (error.status, error.errcode) == (403, "M_FORBIDDEN"), "no access is not absence"
    error = await refusal(at.puppet("p").get_state(RoomID(f"!never:{at.homeserver.domain}"), kind))
    assert error.status == 403


async def aliases(at: Place) -> None:
    first, second = await at.bot.create_room({}), await at.bot.create_room({})
    alias = at.alias("free")
    await at.bot.set_alias(alias, first)
    await at.bot.set_alias(alias, first)
    assert (await refusal(at.bot.set_alias(alias, second))).status == 409
    assert await at.bot.resolve_alias(alias) == first
    await at.bot.delete_alias(alias)
    await at.bot.delete_alias(alias)
    assert await at.bot.resolve_alias(alias) is None
    foreign = f"#other{at.tag}:{at.homeserver.domain}"
    for call in (at.bot.set_alias(foreign, first), at.bot.delete_alias(foreign)):
        assert (await refusal(call)).errcode == "M_EXCLUSIVE"


# ---- events and accounts


async def time_is_the_appservices_to_say(at: Place) -> None:
    room = await at.room("time")
    p, then = at.puppet("p"), 1_577_836_800_000
    old = await p.send(room, "m.room.message", TEXT, f"old{at.tag}{at.version}", ts=then)
    assert await p.send(room, "m.room.message", TEXT, f"old{at.tag}{at.version}", ts=then) == old, "once"
    assert (await at.bot.event(room, old))["origin_server_ts"] == then
    new = await p.send(room, "m.room.message", TEXT, f"new{at.tag}{at.version}")
    assert (await at.bot.event(room, new))["origin_server_ts"] > then + 10**11
    chunk = (await at.bot.messages_back(room, None, 2))["chunk"]
    assert [event["event_id"] for event in chunk] == [new, old], "its place is that of its sending"
    event = await at.pushed(lambda event: event["event_id"] == old)
    assert event["origin_server_ts"] == then


async def profiles(at: Place) -> None:
    p = at.puppet("p")
    await p.set_displayname("Ada")
    await p.set_avatar("mxc://example.org/picture")
    shown = {"displayname": "Ada", "avatar_url": "mxc://example.org/picture"}
    assert await at.bot.profile(p.mxid) == shown
    await p.clear_profile()
    await p.clear_profile()
    assert not await at.bot.profile(p.mxid)
    assert await at.bot.profile(MXID(f"@nobody{at.tag}:{at.homeserver.domain}")) is None
    assert not (await refusal(at.bot.profile(MXID("@a:other.example")))).passing
    assert (await refusal(at.bot.profile(MXID("nonsense")))).status == 400


async def ending_an_account(at: Place) -> None:
    q = at.puppet("q")
    done = at.flavour == "synapse"
    assert await q.deactivate() is done
    assert await q.deactivate() is done
    assert await at.puppet("u").deactivate() is False
    assert await q.joined_rooms() is not None, "the appservice can still act as it"


ROOMS = [
    what_is_there,
    who_was_put_out_knows_less_than_who_is_in,
    a_room_that_nobody_of_ours_sees_is_gone_only_when_its_name_is,
    one_who_is_still_in_saves_a_room,
    what_was_purged_is_gone,
    a_purge_does_not_stop_the_pushing,
    an_upgraded_room_is_there_and_names_the_next,
    kicking,
    rooms_of_ones_own,
    state_with_three_answers,
    time_is_the_appservices_to_say,
]
"""In rooms of either version."""
ELSEWHERE = [what_never_was_is_gone, a_user_who_does_not_exist_proves_nothing, aliases, profiles, ending_an_account]
