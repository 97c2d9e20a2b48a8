"""What rooms look like, as far as the homeserver told us: the ``room``, ``member`` and ``invitation`` tables."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..ids import MXID, RoomID
from .database import Connection, Database, Reader, clean


@dataclass(frozen=True, slots=True)
class Member:
    """A joined or invited user of a room."""

    mxid: MXID
    membership: str
    displayname: str


@dataclass(frozen=True, slots=True)
class RoomInfo:
    """A room's name (may be empty), whether it is encrypted, and who is in it.

    ``known`` says that all of it was read once; before that, members can be missing. ``gap`` says that events may
    have been missed: its timeline is to be read back.
    """

    room_id: RoomID
    name: str
    encrypted: bool
    known: bool
    gap: bool
    members: tuple[Member, ...]

    @property
    def joined(self) -> tuple[Member, ...]:
        """Those who are in."""
        return tuple(member for member in self.members if member.membership == "join")


async def doubt(conn: Connection, room_id: RoomID) -> bool:
    """Within a transaction: have the mirror look at the room, if it is a portal or the space; whether it is.

    ``look`` counts: who has looked takes back no more than it had seen, so that what happens meanwhile is not lost.
    """
    row = await conn.fetchrow(
        "UPDATE room SET look = look + 1 WHERE room_id = $1 AND (EXISTS (SELECT 1 FROM agent WHERE portal_room = $1) "
        "OR EXISTS (SELECT 1 FROM setting WHERE name = 'space' AND value = $1)) RETURNING room_id",
        room_id,
    )
    return row is not None


async def doubt_all(conn: Connection) -> None:
    """Within a transaction: have the mirror look at every portal and the space."""
    await conn.execute(
        "UPDATE room SET look = look + 1 "
        "WHERE room_id IN (SELECT portal_room FROM agent WHERE portal_room IS NOT NULL) "
        "OR room_id IN (SELECT value FROM setting WHERE name = 'space')"
    )


class Rooms:
    """Statements on rooms. Methods that take a connection belong into the caller's transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def info(self, room_id: RoomID, reader: Reader | None = None) -> RoomInfo:
        """The room as known now; an unknown room is empty."""
        reader = reader or self._db
        row = await reader.fetchrow("SELECT name, encrypted, known, gap FROM room WHERE room_id = $1", room_id)
        members = await reader.fetch(
            "SELECT user_id, membership, displayname FROM member "
            "WHERE room_id = $1 AND membership IN ('join', 'invite') ORDER BY user_id",
            room_id,
        )
        return RoomInfo(
            room_id,
            row["name"] if row else "",
            bool(row["encrypted"]) if row else False,
            bool(row["known"]) if row else False,
            bool(row["gap"]) if row else False,
            tuple(Member(MXID(m["user_id"]), m["membership"], m["displayname"]) for m in members),
        )

    async def apply(self, conn: Connection, room_id: RoomID, event: Mapping[str, Any]) -> None:
        """Take in one state event; anything else, or a malformed one, changes nothing."""
        kind, key, content = event.get("type"), event.get("state_key"), event.get("content")
        if not isinstance(key, str) or len(key) > 255 or not isinstance(content, Mapping):
            return
        if kind == "m.room.member":
            membership, name = content.get("membership"), content.get("displayname")
            if isinstance(membership, str):
                shown = clean(name)[:255] if isinstance(name, str) else ""
                await self._member(conn, room_id, clean(key), clean(membership)[:32], shown)
        elif kind == "m.room.name" and key == "":
            name = content.get("name")
            await self._room(conn, room_id, "name", clean(name)[:255] if isinstance(name, str) else "")
        elif kind == "m.room.encryption" and key == "":
            await self._room(conn, room_id, "encrypted", 1)  # encryption cannot be turned off again

    async def _member(self, conn: Connection, room: str, user: str, membership: str, name: str) -> None:
        await conn.execute(
            "INSERT INTO member (room_id, user_id, membership, displayname) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (room_id, user_id) DO UPDATE SET membership = $3, displayname = $4",
            room,
            user,
            membership,
            name,
        )

    async def _room(self, conn: Connection, room_id: RoomID, column: str, value: object) -> None:
        assert column in ("name", "encrypted", "known", "gap")
        await conn.execute(
            f"INSERT INTO room (room_id, {column}) VALUES ($1, $2) ON CONFLICT (room_id) DO UPDATE SET {column} = $2",
            room_id,
            value,
        )

    async def snapshot(self, conn: Connection, room_id: RoomID, state: Iterable[Mapping[str, Any]]) -> None:
        """Replace what is known of the room by its whole present state."""
        await conn.execute("DELETE FROM member WHERE room_id = $1", room_id)
        for event in state:
            await self.apply(conn, room_id, event)
        await self.mark_known(conn, room_id)

    async def mark_known(self, conn: Connection, room_id: RoomID, known: bool = True) -> None:
        """All of the room is known: it was read whole, or we made it. False: what is known may be old."""
        await self._room(conn, room_id, "known", int(known))

    async def mark_gap(self, conn: Connection, room_id: RoomID, gap: bool) -> None:
        """Events of this room may have been missed, or were caught up with."""
        await self._room(conn, room_id, "gap", int(gap))

    async def gaps(self) -> list[RoomID]:
        """Rooms whose timeline is to be read back."""
        return [RoomID(row["room_id"]) for row in await self._db.fetch("SELECT room_id FROM room WHERE gap = 1")]

    async def to_look_at(self) -> dict[RoomID, int]:
        """Rooms that the mirror is to look at, each with its count of reasons."""
        rows = await self._db.fetch("SELECT room_id, look FROM room WHERE look <> 0")
        return {RoomID(row["room_id"]): int(row["look"]) for row in rows}

    async def looked_at(self, conn: Connection, room_id: RoomID, reasons: int) -> None:
        """It was looked at, for as many reasons."""
        await conn.execute("UPDATE room SET look = 0 WHERE room_id = $1 AND look <= $2", room_id, reasons)

    async def membership(self, room_id: RoomID, user: MXID) -> str | None:
        """What is known of one user in one room."""
        value = await self._db.fetchval(
            "SELECT membership FROM member WHERE room_id = $1 AND user_id = $2", room_id, user
        )
        return None if value is None else str(value)

    async def departures(self, room_id: RoomID) -> list[dict[str, Any]]:
        """The newest membership events of a room that were pushed, newest first, as far as they are still kept."""
        rows = await self._db.fetch(
            "SELECT body FROM inbox WHERE room_id = $1 AND type = 'm.room.member' AND body <> '' "
            "ORDER BY seq DESC LIMIT 1000",
            room_id,
        )
        events = [json.loads(row["body"]) for row in rows]
        return [event for event in events if isinstance(event, dict)]

    async def set_membership(self, conn: Connection, room_id: RoomID, user: MXID, membership: str) -> None:
        """Note what a call of ours has just made true."""
        await conn.execute(
            "INSERT INTO member (room_id, user_id, membership) VALUES ($1, $2, $3) "
            "ON CONFLICT (room_id, user_id) DO UPDATE SET membership = $3",
            room_id,
            user,
            membership,
        )

    async def heard_of(self, room_id: RoomID) -> bool:
        """Whether anything is known of the room."""
        return bool(
            await self._db.fetchval(
                "SELECT 1 FROM room WHERE room_id = $1 UNION ALL SELECT 1 FROM member WHERE room_id = $1 LIMIT 1",
                room_id,
            )
        )

    async def rooms_of(self, user: MXID) -> list[RoomID]:
        """Rooms that ``user`` has joined."""
        rows = await self._db.fetch("SELECT room_id FROM member WHERE user_id = $1 AND membership = 'join'", user)
        return [RoomID(row["room_id"]) for row in rows]

    async def invited_once(self, room_id: RoomID) -> set[MXID]:
        """Who was invited by us already: they are never invited again, whatever they did since."""
        rows = await self._db.fetch("SELECT user_id FROM invitation WHERE room_id = $1", room_id)
        return {MXID(row["user_id"]) for row in rows}

    async def note_invited(self, conn: Connection, room_id: RoomID, users: Iterable[MXID]) -> None:
        """Remember invitations."""
        await conn.executemany(
            "INSERT INTO invitation (room_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            [(room_id, user) for user in users],
        )
