"""The outbox at work: one lane per room sends what waits, in order, each under its own transaction id.

Nothing is taken out before the homeserver confirmed it. A repeated send is absorbed by the homeserver as long as it
remembers the transaction id; what is older than that memory is looked for in the room before it is sent again.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from .. import errors, faults
from ..db.agents import Agents
from ..db.database import DATABASE_ERRORS, Connection
from ..db.outbox import Outbox, OutboxRow, Outgoing, is_growing
from ..db.rooms import doubt
from ..db.turns import Turns
from ..ids import CONTENT_KEY, MXID, EventID, RoomID
from ..lanes import Fence, Lanes
from ..matrix.homeserver import Homeserver, HomeserverError, Intent
from ..mirror.bot import DEVICE_NAME
from ..mirror.directory import LANE as MIRROR_LANE
from ..sight import BLIND, Sight
from .outgoing import ReplyTarget, Voice, notice

log = logging.getLogger(__name__)

_MEMORY_WITH_DEVICE = 20 * 3600.0
"""Synapse keeps transaction ids of devices about 24 hours."""
_MEMORY_WITHOUT_DEVICE = 25 * 60.0
"""Without a device it keeps them 30 to 60 minutes, in memory."""
_CLOCK_SLACK = 60.0
_LONGEST_BACK_OFF = 60.0
_MOST_TRIES = 30
"""An event that is refused in an odd way for about half an hour is the cause of it."""
_LOOK_PAGES = 10
_LOOK_EVENTS = 100
_LOOK_SECONDS = 5.0
_CONFIRM_POLL = 1.0
_MEND_PAUSES = (1.0, 5.0, 15.0, 30.0)
_MEND_SECONDS = 5.0


class Sender:
    """Handler of ``send:`` lanes, and the pacing of live edits."""

    def __init__(
        self,
        homeserver: Homeserver,
        outbox: Outbox,
        turns: Turns,
        agents: Agents,
        lanes: Lanes,
        bot: MXID,
        sight: Sight = BLIND,
    ) -> None:
        self._sight = sight
        self._homeserver = homeserver
        self._outbox = outbox
        self._turns = turns
        self._agents = agents
        self._lanes = lanes
        self._bot = bot
        self._waiting: dict[str, asyncio.Future[EventID | None]] = {}
        self._repaired: set[int] = set()
        self._no_edits_before: dict[tuple[MXID, RoomID], float] = {}
        self._mending: set[asyncio.Task[None]] = set()

    async def handle(self, fence: Fence) -> float | None:
        """Send all that can be sent now from the room of the lane."""
        room_id = RoomID(fence.lane.partition(":")[2])
        row = await self._outbox.head(room_id)
        while row is not None:
            if row.wait > 0:
                return row.wait
            row = await self._send(fence, row)
        return None

    async def confirmed(self, txn_id: str, timeout: float) -> EventID | None:
        """Wait until an event of the outbox is confirmed; its id, or None after ``timeout`` seconds or if it died."""
        future = self._waiting.setdefault(txn_id, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(timeout):
                while True:
                    state = await self._outbox.state_of(txn_id)
                    if state != "pending":
                        return await self._outbox.event_of(txn_id)
                    # another replica may be sending it: do not rely on our own signal alone
                    await asyncio.wait({future}, timeout=_CONFIRM_POLL)
                    if future.done():
                        return future.result()
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(txn_id, None)

    async def edit_now(self, fence: Fence, edit: Outgoing, event_id: EventID, patience: float) -> bool:
        """Try a live edit of ``event_id`` once; it is shed when the homeserver is slow, limits us, or fails. Finals
        never are.

        Raises:
            FencedError: another replica may have the turn; its final must stay the newest edit.
        """
        loop, where = asyncio.get_running_loop(), (edit.sender, edit.room_id)
        if loop.time() < self._no_edits_before.get(where, 0.0):
            self._sight.live_edit("shed")
            return False
        faults.reach("edit.before")
        intent = await self._intent(edit.sender)
        self._lanes.check(fence)
        content = {**edit.content, "m.relates_to": {"rel_type": "m.replace", "event_id": event_id}}
        sending = asyncio.create_task(intent.send(edit.room_id, edit.type, content, edit.txn_id))
        given_up = False
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(sending)
        except (HomeserverError, TimeoutError) as error:
            given_up = isinstance(error, TimeoutError)
            self._no_edits_before[where] = loop.time() + (getattr(error, "retry_after", None) or 3.0)
            self._sight.live_edit("shed")
            log.debug("live edit shed", extra={"action": "edit_shed", "room": edit.room_id, "why": str(error)})
            return False
        except asyncio.CancelledError:
            sending.cancel()
            raise
        finally:
            # it may land on the final that comes meanwhile: ours, or, if we were frozen, that of whoever has the turn
            if given_up or not self._lanes.holds(fence):
                task = asyncio.create_task(self._mend(sending, edit, event_id))
                self._mending.add(task)
                task.add_done_callback(self._mending.discard)
        faults.reach("edit.after")
        self._sight.live_edit("sent")
        return True

    async def _mend(self, sending: "asyncio.Task[EventID]", stale: Outgoing, event_id: EventID) -> None:
        await asyncio.gather(sending, return_exceptions=True)
        await self._show_final_again(stale, event_id)

    async def _show_final_again(self, stale: Outgoing, event_id: EventID) -> None:
        """Repeat the final edit, if there is one; whoever has yet to send it will be later than the stale one."""
        for pause in _MEND_PAUSES:
            await asyncio.sleep(pause)
            try:
                final = await self._outbox.final_of(stale.edits)
                if final is None or is_growing(final):
                    return
                content = {**final, "m.relates_to": {"rel_type": "m.replace", "event_id": event_id}}
                intent = await self._intent(stale.sender)
                await intent.send(stale.room_id, stale.type, content, f"{stale.txn_id}-mended")
                return
            except (HomeserverError, *DATABASE_ERRORS) as error:
                extra = {"action": "mend_failed", "room": stale.room_id, "why": type(error).__name__}
                log.warning("a stale edit could not be mended yet", extra=extra)

    async def shown_growing(self, sender: MXID, room_id: RoomID, txn_id: str) -> str | None:
        """The newest text that the room shows of one of our events since a live edit; None where there is none, or the
        room does not tell at once.
        """
        event_id = await self._outbox.event_of(txn_id)
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                page = await (await self._intent(sender)).messages_back(room_id, None, _LOOK_EVENTS)
        except (HomeserverError, TimeoutError):
            return None
        for event in page.get("chunk") or ():
            content = event.get("content") if isinstance(event, Mapping) and event.get("sender") == sender else None
            if event_id and isinstance(content, Mapping) and _replaced(content) == event_id:
                text = content.get("m.new_content")
                return str(text.get("body", "")) if isinstance(text, Mapping) and is_growing(content) else None
        return None

    async def close(self) -> None:
        """Wait for what is being mended."""
        if self._mending:
            _, left = await asyncio.wait(self._mending, timeout=_MEND_SECONDS)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    # -- one event

    async def _intent(self, sender: MXID) -> Intent:
        if sender == self._bot:
            return self._homeserver.bot
        agent = await self._agents.by_mxid(sender)
        return self._homeserver.intent(sender, agent.device_id if agent and agent.device_made else None)

    async def _send(self, fence: Fence, row: OutboxRow) -> OutboxRow | None:
        """Try to send the head of a room; returns what is its head then."""
        content = await self._content(row)
        if content is None:
            await self._bury(fence, row, "the event that it edits was never sent", silent=True)
            return await self._outbox.head(row.room_id)
        intent = self._homeserver.intent(row.sender, row.device_id or None)
        faults.reach("send.before")
        try:
            event_id = await self._found(intent, row) or await _put(intent, row, content)
        except HomeserverError as error:
            await self._failed(fence, row, intent, error)
            return await self._outbox.head(row.room_id)

        faults.reach("send.after")

        async def work(conn: Connection) -> tuple[bool, OutboxRow | None]:
            await self._outbox.sent(conn, row.seq, event_id)
            if row.edits and _replaced(content) is None:
                await self._outbox.drop(conn, row.edits, "said whole since")
            done = row.turn_id is not None and await self._turns.close_delivered(conn, row.turn_id)
            return done, await self._outbox.head(row.room_id, conn)

        done, following = await self._lanes.write(fence, work)
        self._repaired.discard(row.seq)
        self._tell(row, done)
        faults.reach("send.recorded")
        self._resolve(row.txn_id, event_id)
        return following

    async def _content(self, row: OutboxRow) -> dict[str, Any] | None:
        """What is sent. A final edit of an event that was refused is sent as an event of its own: its room may take it
        now. None for an edit of which there is nothing to be edited.
        """
        if not row.edits:
            return row.content
        target = await self._outbox.event_of(row.edits)
        if target is not None:
            return {**row.content, "m.relates_to": {"rel_type": "m.replace", "event_id": target}}
        refused = await self._outbox.refused(row.edits)
        text: dict[str, Any] = row.content.get("m.new_content", {})
        if refused is None or not text or is_growing(row.content):
            return None
        relation = {"m.relates_to": refused["m.relates_to"]} if "m.relates_to" in refused else {}
        return text | relation | {CONTENT_KEY: row.content.get(CONTENT_KEY, {})}

    def _tell(self, row: OutboxRow, done: bool) -> None:
        kind = "notice" if row.content.get("msgtype") == "m.notice" else "edit" if row.edits else "answer"
        self._sight.sent(kind, row.turn_id)
        if done and row.turn_id is not None:
            self._sight.turn_ended(row.turn_id, "done")

    async def _found(self, intent: Intent, row: OutboxRow) -> EventID | None:
        """Older than the homeserver's memory of transaction ids: look whether an earlier try arrived."""
        memory = _MEMORY_WITH_DEVICE if intent.has_device else _MEMORY_WITHOUT_DEVICE
        if -_CLOCK_SLACK < row.age < memory:  # from the future: the clock was set back, so nothing is known of its age
            return None
        start: str | None = None
        for _ in range(_LOOK_PAGES):
            page = await intent.messages_back(row.room_id, start, _LOOK_EVENTS)
            for event in page.get("chunk") or ():
                content = event.get("content") if isinstance(event, Mapping) else None
                marker = content.get(CONTENT_KEY) if isinstance(content, Mapping) else None
                if (
                    isinstance(marker, Mapping)
                    and marker.get("txn") == row.txn_id
                    and event.get("sender") == row.sender
                ):
                    return EventID(str(event.get("event_id")))
            start = page.get("end")
            if not isinstance(start, str):
                break
        return None

    async def _failed(self, fence: Fence, row: OutboxRow, intent: Intent, error: HomeserverError) -> None:
        if error.unknown_device and row.attempts < 3:
            await self._renew_device(row.sender, intent)
            delay = 0.1
        elif error.passing and not (_is_about_the_event(error) and row.attempts >= _MOST_TRIES):
            if row.attempts == 0:
                log.warning(
                    "homeserver does not take an event, trying on",
                    extra={"action": "send_retry", "room": row.room_id, "why": str(error)},
                )
            delay = error.retry_after or min(_LONGEST_BACK_OFF, 0.5 * 2 ** min(row.attempts, 10))
        elif error.forbidden and row.seq not in self._repaired:
            self._repaired.add(row.seq)
            await self._rejoin(intent, row.room_id)
            delay = 0.0
        else:
            in_doubt = error.forbidden or error.not_found
            # of a text that only begins the end is still to come, and is sent whole then
            silent = error.forbidden or is_growing(row.content)
            await self._bury(fence, row, str(error), silent=silent, in_doubt=in_doubt)
            return
        self._sight.retried("send")
        await self._lanes.write(fence, lambda conn: self._outbox.postpone(conn, row.seq, delay, str(error)))

    async def _renew_device(self, sender: MXID, intent: Intent) -> None:
        """The homeserver lost the device (somebody deleted it): make it again, else send without."""
        agent = await self._agents.by_mxid(sender)
        intent.forget_device()
        try:
            if agent is not None:
                await intent.make_device(agent.device_id, DEVICE_NAME)
        except HomeserverError as error:
            if agent is not None:
                await self._agents.update(agent.agent_id, device_made=False)
            log.warning("device not made", extra={"action": "device_failed", "user": sender, "why": str(error)})

    async def _rejoin(self, intent: Intent, room_id: RoomID) -> None:
        """Refused by the room: if somebody invited us back, one join repairs it."""
        try:
            await intent.join(room_id)
        except HomeserverError as error:
            log.info("not in the room any more", extra={"action": "rejoin", "room": room_id, "why": str(error)})

    async def _bury(
        self, fence: Fence, row: OutboxRow, why: str, *, silent: bool = False, in_doubt: bool = False
    ) -> None:
        """Keep it as a dead letter, and say in its place that an answer is missing, unless that cannot be shown either
        or was said already. ``in_doubt``: the room refused it; the mirror is to look whether it is as it should be.
        """
        log.error("event cannot be sent", extra={"action": "dead_letter", "room": row.room_id, "why": why})
        is_answer = row.content.get("msgtype") != "m.notice"

        async def work(conn: Connection) -> tuple[bool, bool]:
            await self._outbox.bury(conn, row.seq, why)
            doubted = in_doubt and await doubt(conn, row.room_id)
            if doubted:
                await self._lanes.announce(conn, MIRROR_LANE)
            if is_answer and not silent:
                voice = Voice(row.sender, row.room_id)
                out = notice(voice, errors.NOT_SHOWN, ReplyTarget(), source=row.txn_id, kind="dead")
                await self._outbox.add(conn, out)
            done = row.turn_id is not None and await self._turns.close_delivered(conn, row.turn_id)
            return done, doubted

        done, doubted = await self._lanes.write(fence, work)
        if done and row.turn_id is not None:
            self._sight.turn_ended(row.turn_id, "done")
        if doubted:
            self._lanes.wake(MIRROR_LANE)
        self._sight.buried("outbox")
        self._repaired.discard(row.seq)
        self._resolve(row.txn_id, None)

    def _resolve(self, txn_id: str, event_id: EventID | None) -> None:
        future = self._waiting.get(txn_id)
        if future is not None and not future.done():
            future.set_result(event_id)


async def _put(intent: Intent, row: OutboxRow, content: Mapping[str, Any]) -> EventID:
    """Send it with the time at which it was said, or without where the homeserver does not take that."""
    if row.stamp is not None:
        try:
            return await intent.send(row.room_id, row.type, content, row.txn_id, row.stamp)
        except HomeserverError as error:
            if error.passing or error.unknown_device:
                raise
    return await intent.send(row.room_id, row.type, content, row.txn_id)


def _replaced(content: Mapping[str, Any]) -> object:
    """The event that this one edits, if it is an edit."""
    relation = content.get("m.relates_to")
    if not isinstance(relation, Mapping) or relation.get("rel_type") != "m.replace":
        return None
    return relation.get("event_id")


def _is_about_the_event(error: HomeserverError) -> bool:
    """Whether an answer that may pass can also mean this one event: "internal error", or a proxy's own refusal."""
    return error.status == 500 or (400 <= error.status < 500 and error.status not in (401, 408, 429))
