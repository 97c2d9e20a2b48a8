"""How our users come into rooms: invitations, joins, and reading back what was said before or in a gap."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from .. import errors
from ..db.access import AccessTable
from ..db.agents import AgentRow
from ..db.database import Connection
from ..db.inbox import Arrival, StoredEvent
from ..ids import MXID, RoomID
from ..lanes import Fence
from ..matrix.catchup import read_back
from ..matrix.homeserver import HomeserverError, Intent
from ..routing import rights
from ..routing.permissions import Grant, Level
from .context import RoomContext
from .known import anywhere
from .outgoing import ReplyTarget, Voice, notice, text_content
from .restored import RestoredRooms

log = logging.getLogger(__name__)

_ASK_AT_MOST = 200
_TELL_AGAIN = 24 * 3600.0


class NotReadError(HomeserverError):
    """Joined, but what was said since the invitation cannot be read yet: nothing later in the room may come first."""


class RoomEntry:
    """Takes invitations and keeps up with rooms; always called by the room's own lane.

    Args:
        context: the parts that it touches.
        catchup_limit: events that one reading back takes in at most.
    """

    def __init__(self, context: RoomContext, catchup_limit: int) -> None:
        self._c = context
        self._limit = catchup_limit
        self._restored = RestoredRooms(context, catchup_limit, self.learn)

    async def member_event(self, fence: Fence, event: StoredEvent) -> tuple[str, str]:
        """Take in a membership event about one of our users: (inbox state, reason).

        Raises:
            HomeserverError, LettaError: cannot be done now; the event stays the head of its room.
        """
        mxid = MXID(str(event.event.get("state_key")))
        membership = event.event["content"].get("membership")
        # of an invitation that had to be set aside, the join may have been seen already: that is the newer
        inside = membership == "invite" and await self._c.rooms.membership(event.room_id, mxid) == "join"
        if not inside:
            await self._c.lanes.write(fence, lambda conn: self._c.rooms.apply(conn, event.room_id, event.event))
        if membership == "invite":
            return await self._invited(fence, event, mxid, inside)
        if membership == "join" and event.sender == mxid:
            if await self._c.lanes.write(fence, lambda conn: self._c.inbox.recall(conn, event.room_id)):
                return "dispatched", "joined by an invitation that is taken up next"
            room = await self._c.rooms.info(event.room_id)
            if not room.known and await self._c.inbox.saw_creation_by(event.room_id, self._c.directory.is_ours):
                # a room of our own making: all of it was, or will be, pushed
                await self._c.lanes.write(fence, lambda conn: self._c.rooms.mark_known(conn, event.room_id))
                return "dispatched", "joined a room of our own"
            if not room.known:
                # not by an invitation that we saw: what was said before was not meant for the agent, or was answered
                # by a bridge whose database is gone
                return "dispatched", await self._learn_of_join(fence, event.room_id, mxid)
        if membership in ("leave", "ban"):
            await self._left(fence, event.room_id)
        return "dispatched", f"membership of ours: {str(membership)[:20]}"

    async def _learn_of_join(self, fence: Fence, room_id: RoomID, mxid: MXID) -> str:
        try:
            await self.learn(fence, room_id, mxid)
        except HomeserverError as error:
            if error.passing or error.status not in (403, 404):
                raise
            return f"joined, and gone again: {error.status} {error.errcode}"  # its leave comes next
        return "joined without an invitation of ours"

    async def _left(self, fence: Fence, room_id: RoomID) -> None:
        """Without any of ours in it nothing is pushed from a room: what is known of it grows old."""
        room = await self._c.rooms.info(room_id)
        if not any(self._c.directory.is_ours(member.mxid) for member in room.joined):
            await self._c.lanes.write(fence, lambda conn: self._c.rooms.mark_known(conn, room_id, False))

    async def _invited(self, fence: Fence, event: StoredEvent, mxid: MXID, inside: bool) -> tuple[str, str]:
        if self._c.directory.is_ours(event.sender):
            return "dispatched", "invited by the bridge itself"
        agent = await self._c.agents.by_mxid(mxid)
        grant = await self._may_bring(event, mxid, agent)
        if grant.level < Level.USER:
            if mxid == self._c.homeserver.bot_mxid or agent is not None:
                await self._turn_away(event, mxid, grant)
            # else: strangers cannot make us create users by inviting made-up names
            return "dispatched", f"invitation refused: {grant}"
        intent = await self._intent(mxid)
        if intent is None:
            intent = self._c.homeserver.intent(mxid)
            await intent.register()  # whoever does not exist cannot say no
            await intent.leave(event.room_id, errors.NO_SUCH_AGENT)
            return "dispatched", "invitation refused: no such agent"
        try:
            await intent.join(event.room_id)
        except HomeserverError as error:
            if error.passing and inside:  # what is said is pushed already: it must wait until the room was read
                raise NotReadError(error.status, error.errcode, error.message, error.retry_after) from error
            if error.passing:
                raise
            return "dispatched", f"could not join: {error}"
        try:
            await self._enter(fence, event, mxid, intent)
        except HomeserverError as error:
            if error.passing:
                raise NotReadError(error.status, error.errcode, error.message, error.retry_after) from error
            raise
        return "dispatched", "joined"

    async def _may_bring(self, invite: StoredEvent, mxid: MXID, agent: AgentRow | None) -> Grant:
        """What the inviter may do with the agent, or with the bridge when it is the bot or nobody known."""
        whole = self._c.permissions.grant(invite.sender)
        if agent is None:
            return await anywhere(self._c.db, whole) if mxid == self._c.homeserver.bot_mxid else whole
        given = await AccessTable(self._c.db).in_room(invite.room_id, [agent.agent_id])
        return rights.bring(whole, given, rights.Owned(agent.agent_id, agent.owner), invite.room_id)

    async def _intent(self, mxid: MXID) -> Intent | None:
        if mxid == self._c.homeserver.bot_mxid:
            return self._c.homeserver.bot
        agent: AgentRow | None = await self._c.directory.resolve(mxid)
        if agent is None:
            return None
        return self._c.homeserver.intent(mxid, agent.device_id if agent.device_made else None)

    async def _turn_away(self, event: StoredEvent, mxid: MXID, grant: Grant) -> None:
        """Refuse with the reason; people of this server are told once in the room itself, where they see it."""
        intent = self._c.homeserver.intent(mxid)
        await intent.register()
        or_else = "" if rights.settled(grant) else errors.or_grant(grant.mxid)
        reason = errors.MAY_NOT_INVITE.format(who=grant.mxid, or_else=or_else)
        if grant.subject:
            reason = errors.MAY_NOT_BRING.format(who=grant.mxid, name=mxid)
        local = grant.mxid.endswith(f":{self._c.homeserver.domain}") and grant.ignored_by is None
        topic = f"invite-refused:{grant.mxid}"
        if local and not await self._c.told.was_told(topic, within=_TELL_AGAIN):
            try:
                await intent.join(event.room_id)
                content = text_content(reason, ReplyTarget(), msgtype="m.notice", marker={"version": 1})
                await intent.send(event.room_id, "m.room.message", content, f"no-{event.event_id}")
            except HomeserverError as error:
                if error.passing:
                    raise
                log.info("refusal not shown", extra={"action": "refusal_not_shown", "why": str(error)})
            await self._c.told.tell(topic)
        await intent.leave(event.room_id, reason)
        log.info("invitation refused", extra={"action": "invite_refused", "who": grant.mxid, "why": str(grant)})

    async def who_is_in(self, room_id: RoomID) -> list[MXID]:
        """Which of our users are joined to the room, as far as the homeserver tells the first that may ask.

        Raises:
            HomeserverError: it cannot be known yet.
        """
        agents = await self._c.agents.all()
        users = [self._c.homeserver.bot_mxid, *(agent.mxid for agent in agents if agent.registered)]
        for mxid in users[:_ASK_AT_MOST]:
            try:
                members = await self._c.homeserver.intent(mxid).joined_members(room_id)
            except HomeserverError as error:
                if error.passing:
                    raise
                continue
            return [member for member in members if self._c.directory.is_ours(member)]
        if not agents or any(agent.state == "new" and not agent.registered for agent in agents):
            raise HomeserverError(0, "", "the agents are not mirrored yet, so nobody can say who is in the room")
        return []

    async def learn(self, fence: Fence, room_id: RoomID, mxid: MXID) -> bool:
        """Read the whole state of a room that one of our users is in; whether this user could.

        Raises:
            HomeserverError: it cannot be read.
            LettaError: who else of ours is in it cannot be known now.
        """
        intent = await self._intent(mxid)
        if intent is None:
            return False
        state = await intent.state(room_id)
        await self._know_agents(state)
        await self._take_in(fence, room_id, mxid, state, (), 0)
        return True

    async def _know_agents(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Whose users are in a room is known before anything is decided there: a database that is made again, or came
        from a backup, may not have their rows yet, and what is said to them would be taken for something else.
        """
        for event in state:
            mxid, content = MXID(str(event.get("state_key"))), event.get("content")
            joined = isinstance(content, Mapping) and content.get("membership") == "join"
            if event.get("type") != "m.room.member" or not joined or mxid == self._c.homeserver.bot_mxid:
                continue
            if self._c.directory.is_ours(mxid) and await self._c.agents.by_mxid(mxid) is None:
                try:
                    await self._c.directory.resolve(mxid)
                except HomeserverError as error:  # the row is written before anything is made
                    log.info("user not made yet", extra={"action": "puppet_waits", "user": mxid, "why": str(error)})

    async def _enter(self, fence: Fence, invite: StoredEvent, mxid: MXID, intent: Intent) -> None:
        """Right after a join: learn the room's state, and read what was said since the invitation."""
        state = await intent.state(invite.room_id)
        if invite.doubtful:  # we may have been in here since, and answered
            await self._take_in(fence, invite.room_id, mxid, state, (), invite.seq)
            await self._restored.read(fence, invite.room_id, after=invite.seq)
            return
        back = await read_back(intent, self._c.inbox, invite.room_id, invite.event_id, self._limit)
        await self._take_in(fence, invite.room_id, mxid, state, back.arrivals, invite.seq)

    async def _take_in(
        self,
        fence: Fence,
        room_id: RoomID,
        mxid: MXID,
        state: list[dict[str, Any]],
        arrivals: Sequence[Arrival],
        after: int,
    ) -> None:
        async def work(conn: Connection) -> None:
            await self._c.rooms.snapshot(conn, room_id, state)
            await self._c.rooms.set_membership(conn, room_id, mxid, "join")
            await self._c.inbox.insert_caught_up(conn, room_id, arrivals, after)
            if _is_encrypted(state):
                await self._say_encrypted(conn, room_id, mxid)

        await self._c.lanes.write(fence, work)
        self._c.lanes.wake(f"send:{room_id}")

    async def _say_encrypted(self, conn: Connection, room_id: RoomID, mxid: MXID) -> None:
        if await self._c.told.first_time(conn, f"{room_id}|encrypted"):
            source = f"encrypted|{room_id}"
            text = errors.ENCRYPTED_BOT if mxid == self._c.homeserver.bot_mxid else errors.ENCRYPTED
            out = notice(Voice(mxid, room_id), text, ReplyTarget(), source=source, kind="encrypted")
            await self._c.outbox.add(conn, out)
            await self._c.lanes.announce(conn, f"send:{room_id}")

    async def close_gap(self, fence: Fence, room_id: RoomID) -> None:
        """Events may have been missed here: read back to the last one handled.

        Raises:
            HomeserverError: not now.
        """
        if await self._c.restored.flagged(room_id):
            await self._restored.read(fence, room_id)
            return
        room = await self._c.rooms.info(room_id)
        arrivals: Sequence[Arrival] = ()
        for member in room.joined:
            if not self._c.directory.is_ours(member.mxid):
                continue
            intent = self._c.homeserver.intent(member.mxid)
            try:
                arrivals = (await read_back(intent, self._c.inbox, room_id, None, self._limit)).arrivals
                break
            except HomeserverError as error:  # this one of our users cannot read it; another one may
                if error.passing:
                    raise
                log.info("gap not read", extra={"action": "gap_unreadable", "room": room_id, "why": str(error)})

        async def work(conn: Connection) -> int:
            await self._c.rooms.mark_gap(conn, room_id, False)
            return await self._c.inbox.insert_caught_up(conn, room_id, arrivals, 0)

        if missed := await self._c.lanes.write(fence, work):
            log.warning("caught up", extra={"action": "caught_up", "room": room_id, "events": missed})


def _is_encrypted(state: list[dict[str, Any]]) -> bool:
    return any(
        event.get("type") == "m.room.encryption" and isinstance(event.get("content"), Mapping) for event in state
    )
