"""After a restore from a backup: what was said since is read back from the rooms, and with it what the lost bridge did.

Everything that the bridge says carries a mark with its transaction id and the messages that it answers. So the rooms
themselves tell which answers are out already and which messages are answered; that is written down as if it had never
been lost, before anything else is done in the room. What a room does not tell, Letta is asked: see ``doubt.py``.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import errors
from ..db.agents import Agents
from ..db.database import DATABASE_ERRORS, Connection
from ..db.inbox import ECHO, Arrival
from ..db.outbox import is_growing
from ..db.restored import NOTE, Restored
from ..db.rooms import doubt
from ..db.turns import agent_lane
from ..ids import CONTENT_KEY, MXID, AgentID, EventID, RoomID, TurnID
from ..lanes import Fence
from ..matrix.catchup import as_arrival, invites
from ..matrix.homeserver import Homeserver, HomeserverError, Intent
from .context import RoomContext
from .outgoing import ReplyTarget, Voice, notice, txn_id

log = logging.getLogger(__name__)

_PAGE = 100
_ALL = 10
"""How many times as many events as messages of people are read."""
_SLACK = 600.0
"""Seconds around the time of the backup in which something may have been sent and not yet noted."""
_HELD = 1.0
_SWEEP = 5.0
_SWEEP_AFTER = 60.0

Handler = Callable[[Fence], Awaitable[float | None]]


def held_back(restored: Restored, handle: Handler) -> Handler:
    """A handler of lanes of rooms that waits until the room was read back."""

    async def handler(fence: Fence) -> float | None:
        if restored.unfinished and await restored.waits(RoomID(fence.lane.partition(":")[2])):
            return _HELD
        return await handle(fence)

    return handler


async def find_rooms(
    restored: Restored, homeserver: Homeserver, agents: Agents, poll: float, wake: Callable[[RoomID], None]
) -> None:
    """Have rooms read back that the backup does not know, as far as one of our users is in them.

    Ends when every user was asked, those that the first look at Letta's list brought back included.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + 2 * poll + _SWEEP_AFTER
    asked: set[MXID] = set()
    while restored.facts is not None and not restored.facts.swept:
        try:
            users = [homeserver.bot_mxid, *(agent.mxid for agent in await agents.all() if agent.registered)]
            for mxid in users:
                if mxid not in asked:
                    for room_id in await restored.want(mxid, await _rooms_of(homeserver.intent(mxid))):
                        wake(room_id)
                    asked.add(mxid)
            if loop.time() > until and asked.issuperset(users):
                await restored.swept()
        except (HomeserverError, *DATABASE_ERRORS) as error:  # once more in a moment
            log.info("rooms not found yet", extra={"action": "restored_rooms_wait", "why": type(error).__name__})
        await asyncio.sleep(_SWEEP)


async def _rooms_of(intent: Intent) -> list[RoomID]:
    try:
        return await intent.joined_rooms()
    except HomeserverError as error:
        if error.passing:
            raise
        return []  # there is no such user any more


@dataclass(slots=True)
class _Answer:
    """What our users said in answer to some messages. ``growing``: by event, whether it was never completed."""

    sender: MXID
    at: float
    thread: str
    reply_to: str
    txns: set[str] = field(default_factory=set)
    growing: dict[str, bool] = field(default_factory=dict)
    settled: bool = False
    last: int = 0


@dataclass(slots=True)
class _Timeline:
    """What was read, oldest first. ``complete``: nothing of what people said since the backup is missing."""

    reader: MXID
    arrivals: list[Arrival] = field(default_factory=list)
    own: list[Mapping[str, Any]] = field(default_factory=list)
    complete: bool = True


class RestoredRooms:
    """Reads rooms back after a restore; always called by the room's own lane.

    Args:
        context: the parts that it touches.
        limit: messages of people that are taken in at most from one room.
        learn: reads the whole state of a room as one of our users; whether this user could.
    """

    def __init__(
        self, context: RoomContext, limit: int, learn: Callable[[Fence, RoomID, MXID], Awaitable[bool]]
    ) -> None:
        self._c = context
        self._limit = limit
        self._learn = learn

    async def read(self, fence: Fence, room_id: RoomID, after: int = 0) -> None:
        """Read the room back to the newest event that the backup knows to be dealt with, and write down what is there.

        Args:
            after: the row that is being handled, or 0.

        Raises:
            HomeserverError, LettaError: not now; nothing may be done in the room before.
        """
        timeline = await self._timeline(fence, room_id)

        async def work(conn: Connection) -> int:
            await self._c.rooms.mark_gap(conn, room_id, False)
            await doubt(conn, room_id)  # an agent's room tells its owner, and whether it was despawned since
            await self._c.restored.done(conn, room_id, read=timeline is not None)
            missed = 0
            if timeline is not None:
                await _Memory(self._c, conn, room_id).take_in(timeline.own)
                missed = await self._c.inbox.insert_caught_up(conn, room_id, timeline.arrivals, after)
            await conn.execute("UPDATE inbox SET decision = $2 WHERE room_id = $1 AND state = 'new'", room_id, NOTE)
            if timeline is not None and not timeline.complete:
                await self._tell_limit(conn, room_id, timeline.reader)
            return missed

        missed = await self._c.lanes.write(fence, work)
        self._c.restored.forget(room_id)
        self._c.lanes.wake(f"send:{room_id}")
        own = len(timeline.own) if timeline else 0
        extra = {"action": "restored_room", "room": room_id, "events": missed, "own": own, "read": timeline is not None}
        log.info("room read back after a restore", extra=extra)

    async def _tell_limit(self, conn: Connection, room_id: RoomID, reader: MXID) -> None:
        facts = self._c.restored.facts
        assert facts is not None
        text = errors.RESTORED_LIMIT.format(limit=self._limit)
        source = f"restored|{facts.count}|{facts.restored_at}"
        out = notice(Voice(reader, room_id), text, ReplyTarget(), source=source, kind="restored")
        await self._c.outbox.add(conn, out)
        await self._c.lanes.announce(conn, f"send:{room_id}")

    async def _timeline(self, fence: Fence, room_id: RoomID) -> _Timeline | None:
        """As the first of our users that may read it sees it; None when none may."""
        room = await self._c.rooms.info(room_id)
        for member in room.joined:
            if not self._c.directory.is_ours(member.mxid):
                continue
            try:
                if await self._learn(fence, room_id, member.mxid):
                    return await self._pages(self._c.homeserver.intent(member.mxid), room_id)
            except HomeserverError as error:  # this one of our users is not in it any more; another one may be
                if error.passing:
                    raise
                log.info("room not read", extra={"action": "gap_unreadable", "room": room_id, "why": str(error)})
        return None

    async def _pages(self, intent: Intent, room_id: RoomID) -> _Timeline:
        facts = self._c.restored.facts
        assert facts is not None
        found = _Timeline(intent.mxid)
        start: str | None = None
        seen, bordered, ended = 0, False, False
        while not ended and seen < self._limit * _ALL:
            page = await intent.messages_back(room_id, start, _PAGE)
            chunk = [event for event in page["chunk"] if isinstance(event, Mapping)]
            seen += len(page["chunk"])
            for event in chunk:
                # what was sent around the time of the backup may stand before what is known to be dealt with
                if bordered and _time(event) < facts.backup_at - _SLACK:
                    ended = True
                    break
                bordered = bordered or await self._is_border(event, intent.mxid, room_id)
                self._sort(event, room_id, found, bordered)
            start = page.get("end")
            ended = ended or not isinstance(start, str) or not chunk
        found.complete = found.complete and (bordered or ended)
        found.arrivals.reverse()
        found.own.reverse()
        return found

    def _sort(self, event: Mapping[str, Any], room_id: RoomID, found: _Timeline, bordered: bool) -> None:
        if self._c.directory.is_ours(MXID(str(event.get("sender")))):
            found.own.append(event)
        elif not bordered and "state_key" not in event:
            if len(found.arrivals) < self._limit:
                found.arrivals.append(as_arrival(event, room_id))
            else:
                found.complete = False

    async def _is_border(self, event: Mapping[str, Any], me: MXID, room_id: RoomID) -> bool:
        """Whether the backup knows that everything older was dealt with, or it was never meant for us."""
        if invites(event, me):
            return True
        facts = self._c.restored.facts
        assert facts is not None
        return bool(
            await self._c.db.fetchval(
                "SELECT 1 FROM inbox WHERE event_id = $1 AND room_id = $2 AND state <> 'new' AND decision <> $3 "
                "AND seq <= $4",
                str(event.get("event_id")),
                room_id,
                ECHO,
                facts.seq,
            )
        )


class _Memory:
    """Within a transaction: what our users said in a room, written down as sent, and what it answers as answered."""

    def __init__(self, context: RoomContext, conn: Connection, room_id: RoomID) -> None:
        self._c = context
        self._conn = conn
        self._room_id = room_id
        self._txns: dict[str, str] = {}
        self._answers: dict[tuple[AgentID, tuple[EventID, ...]], _Answer] = {}

    async def take_in(self, own: Sequence[Mapping[str, Any]]) -> None:
        """Events of ours, oldest first."""
        for number, event in enumerate(own):
            content = event.get("content")
            marker = content.get(CONTENT_KEY) if isinstance(content, Mapping) else None
            if isinstance(content, Mapping) and isinstance(marker, Mapping) and isinstance(marker.get("txn"), str):
                await self._event(number, event, content, marker)
        newest: dict[AgentID, int] = {}
        for (agent_id, _), answer in self._answers.items():
            newest[agent_id] = max(newest.get(agent_id, 0), answer.last)
        for (agent_id, answers), answer in self._answers.items():
            # of an agent's newest answer in a room more may have been on its way; those before it came to their end
            whole = answer.settled or (not any(answer.growing.values()) and answer.last < newest[agent_id])
            await self._turn(agent_id, answers, answer, whole)

    async def _event(
        self, number: int, event: Mapping[str, Any], content: Mapping[str, Any], marker: Mapping[str, Any]
    ) -> None:
        txn, event_id = str(marker["txn"]), str(event.get("event_id"))
        relation = content.get("m.relates_to")
        relation = relation if isinstance(relation, Mapping) else {}
        target = str(relation.get("event_id")) if relation.get("rel_type") == "m.replace" else ""
        growing = is_growing(content)
        if target and growing:
            return  # one of many edits, of which none is remembered
        edits = await self._txn_of(target) if target else ""
        if not target or edits:
            await self._sent(event, content, txn, event_id, edits)
        if not target:
            self._txns[event_id] = txn
        answers = marker.get("answers")
        if not isinstance(answers, list) or not isinstance(marker.get("agent"), str):
            return
        key = (AgentID(marker["agent"]), tuple(EventID(str(one)) for one in answers))
        answer = self._answers.get(key)
        if answer is None:
            thread = str(relation.get("event_id")) if relation.get("rel_type") == "m.thread" else ""
            reply = relation.get("m.in_reply_to")
            reply_to = str(reply.get("event_id")) if isinstance(reply, Mapping) else ""
            answer = self._answers[key] = _Answer(MXID(str(event.get("sender"))), _time(event), thread, reply_to)
        answer.txns.add(txn)
        answer.last = number
        answer.growing[target or event_id] = growing
        answer.settled = answer.settled or content.get("msgtype") == "m.notice"

    async def _txn_of(self, event_id: str) -> str:
        if event_id in self._txns:
            return self._txns[event_id]
        value = await self._conn.fetchval(
            "SELECT txn_id FROM outbox WHERE sent_event_id = $1 AND sent_event_id <> ''", event_id
        )
        return str(value or "")

    async def _sent(
        self, event: Mapping[str, Any], content: Mapping[str, Any], txn: str, event_id: str, edits: str
    ) -> None:
        row = await self._conn.fetchrow("SELECT seq, state, turn_id FROM outbox WHERE txn_id = $1", txn)
        if row is None:
            await self._conn.execute(
                "INSERT INTO outbox (txn_id, room_id, sender, type, content, edits, state, sent_event_id, created_at, "
                "sent_at) VALUES ($1, $2, $3, $4, $5, $6, 'sent', $7, $8, $8)",
                txn,
                self._room_id,
                str(event.get("sender")),
                str(event.get("type")),
                json.dumps(content),
                edits,
                event_id,
                _time(event),
            )
        elif row["state"] != "sent":
            await self._c.outbox.sent(self._conn, row["seq"], EventID(event_id))
            if row["turn_id"] is not None:
                await self._c.turns.close_delivered(self._conn, TurnID(row["turn_id"]))

    async def _turn(self, agent_id: AgentID, answers: tuple[EventID, ...], answer: _Answer, whole: bool) -> None:
        """Note what was answered. What may have been answered only in part is looked up in Letta, and completed."""
        known: dict[str, TurnID] = {}
        for event_id in answers:
            row = await self._conn.fetchrow(
                "SELECT e.turn_id, t.state FROM turn_event e JOIN turn t ON t.turn_id = e.turn_id "
                "WHERE e.event_id = $1 AND e.agent_id = $2",
                event_id,
                agent_id,
            )
            if row is None:
                continue
            known[event_id] = TurnID(row["turn_id"])
            if whole and row["state"] == "queued":
                await self._c.turns.close(self._conn, TurnID(row["turn_id"]), "done", "answered before the restore")
        missing = [event_id for event_id in answers if event_id not in known]
        if not missing:
            return
        turn_id = next(iter(known.values()), None) or await self._new_turn(agent_id, answers[0], answer, whole)
        for position, event_id in enumerate(missing, start=1001):  # after those that the turn has
            await self._conn.execute(
                "INSERT INTO turn_event (event_id, agent_id, turn_id, position, sender, text, created_at) "
                "VALUES ($1, $2, $3, $4, '', '', $5)",
                event_id,
                agent_id,
                turn_id,
                position,
                answer.at,
            )

    async def _new_turn(self, agent_id: AgentID, first: EventID, answer: _Answer, whole: bool) -> TurnID:
        source = f"{first}|{agent_id}"
        expected = txn_id(answer.sender, self._room_id, source, "answer", 0)
        facts = self._c.restored.facts
        assert facts is not None
        # under another name than it was said, it would be said twice
        look = not whole and expected in answer.txns
        row = await self._conn.fetchrow(
            "INSERT INTO turn (lane, agent_id, room_id, source, thread_root, reply_to, state, attempt, created_at, "
            "finished_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (source) DO NOTHING "
            "RETURNING turn_id",
            agent_lane(agent_id),
            agent_id,
            self._room_id,
            source,
            answer.thread,
            answer.reply_to,
            "queued" if look else "done",
            facts.attempt if look else 0,
            answer.at,
            None if look else answer.at,
        )
        if row is None:
            return TurnID(await self._conn.fetchval("SELECT turn_id FROM turn WHERE source = $1", source))
        if look:
            await self._c.lanes.announce(self._conn, f"agent:{agent_id}")
        return TurnID(row["turn_id"])


def _time(event: Mapping[str, Any]) -> float:
    """Seconds since 1970 by the homeserver's clock; 0 when it does not say."""
    stamp = event.get("origin_server_ts")
    return stamp / 1000 if isinstance(stamp, int) else 0.0
