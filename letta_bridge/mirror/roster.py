"""Taking in what Letta says: who is new, changed, gone or back. It writes rows; others make them true in Matrix.

A pass over an unchanged list reads the rows and the list, compares them, and writes nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from ..db.agents import AgentRow, Agents
from ..db.alarms import Alarms
from ..db.database import Connection, Database, clean
from ..db.lifecycle import Absence, Lifecycle, NewRow
from ..db.memory import Settings
from ..ids import MXID, AgentID
from ..letta.backend import Agent, AgentListing, Backend
from ..letta.errors import Kind, LettaError
from .avatar import avatar_source
from .bot import new_device_id
from .comparison import Picture, compare, stored_tags
from .guard import Evidence, Guard, Remembered, Verdict, Who, Why, judge
from .hidden import Hidden
from .identity import Identity
from .listing import Listings
from .names import Names
from .settings import MirrorSettings
from .writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")
_BATCH = 200
"""Rows per commit."""
_ASK_AT_MOST = 200
"""Agents that seem gone and are asked for by their ids in one pass before anything is judged."""
_UNWATCHED = 600.0
_LOOKED = "roster.looked"
_ADOPTED = (
    "Letta's database has another fingerprint than before, and the same agents: it was moved or restored, I take it. "
    "Nothing has to be done."
)


@dataclass(slots=True)
class Changes:
    """What a pass did to the rows. ``frozen`` is why nothing was taken away (or nothing done at all), or empty."""

    added: int = 0
    changed: int = 0
    missing: int = 0
    archived: int = 0
    back: int = 0
    frozen: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one time, and what may be made of it. Nothing was written for it.

    Attributes:
        unsure: agents that seem gone, and of whom nothing certain is known.
    """

    rows: dict[AgentID, AgentRow]
    listing: AgentListing
    memory: Remembered
    picture: Picture
    absences: Sequence[Absence]
    unsure: set[AgentID]
    who: Who
    fingerprint: str | None
    evidence: Evidence
    verdict: Verdict


class Roster:
    """The rows of agents, kept equal to Letta's list as far as that can be believed.

    Args:
        clock: seconds that never go back.
    """

    def __init__(
        self,
        db: Database,
        agents: Agents,
        settings: Settings,
        alarms: Alarms,
        backend: Backend,
        listings: Listings,
        names: Names,
        mirror: MirrorSettings,
        clock: Callable[[], float],
    ) -> None:
        self._db = db
        self._agents = agents
        self._lifecycle = Lifecycle(db, agents)
        self._settings = settings
        self._listings = listings
        self._names = names
        self._mirror = mirror
        self._identity = Identity(backend, mirror.marker)
        self._asked = False
        """Whether this process has asked who Letta is."""
        self._news = True
        """Whether news of ours may still stand in the table of alarms."""
        self._hidden = Hidden(backend, clock)
        self.guard = Guard(db, alarms)
        self.to_tell = False
        """Whether the newest pass left something that admins are to be told."""
        self.settled = False
        """Whether the newest pass ended a freeze, or made it one about something else."""

    async def look(self, writer: Writer) -> Changes:
        """One comparison, and what follows from it.

        Raises:
            LettaError: Letta cannot be listed now; nothing was changed.
            FencedError: another replica has the lane.
        """
        self.to_tell = self.settled = False
        seen = await self.see()
        rows, picture, memory, verdict = seen.rows, seen.picture, seen.memory, seen.verdict
        done = Changes()
        await self._stand(writer, verdict, seen.evidence, memory, seen.fingerprint, done)
        await self._take_in(writer, rows, picture, verdict, done)
        if seen.listing.complete:
            await self._let_go(writer, picture, verdict, memory, seen.unsure, seen.who, done)
            await self._tidy(writer, picture, verdict, memory, seen.absences, done)
        await self._forget_confirmed(writer, rows, picture, memory, seen.absences)
        return done

    async def see(self) -> Look:
        """What a comparison that began now would go by. Writes nothing, so that anybody may ask at any time.

        Raises:
            LettaError: Letta cannot be listed now.
        """
        rows = {row.agent_id: row for row in await self._agents.all()}  # before: a list begun later has all of them
        listing = await self._listings.get()
        memory = await self.guard.read()
        picture = await compare(rows, listing, self._listings.wanted)
        absences = await self._absences(rows)
        unsure = await self._still_there(picture, memory, listing)
        who, fingerprint = await self._who(picture, memory)
        evidence = self._evidence(rows, listing, picture, memory, absences, who)
        verdict = _cautious(judge(evidence), who, memory)
        return Look(rows, listing, memory, picture, absences, unsure, who, fingerprint, evidence, verdict)

    async def has(self, agent_id: AgentID) -> bool | None:
        """Whether the Letta that answers now has this agent, listed or not; None: it cannot be known now."""
        there, unsure = await self._hidden.ask([agent_id])
        return None if unsure else bool(there)

    async def admit(self, agent: Agent, listing: AgentListing) -> bool:
        """Write one agent of a listing down outside of a pass, because somebody wants to talk to it now.

        False when it has a row already. Raises LettaError when it cannot be said whether this is the right Letta.
        """
        if await self._agents.get(agent.id) is not None:
            return False
        known = {row.agent_id for row in await self._agents.all() if row.state != "archived"}
        memory = await self.guard.read()
        gone: Set[AgentID] = frozenset()
        who, fingerprint = await self._identity.ask(memory.fingerprint)
        if memory.confirmed is not None:
            known -= set(memory.confirmed.gone)
            who = _confirmed(who, fingerprint, memory)
        listed = {one.id for one in listing.agents}
        if not _cautious(judge(Evidence(listing.complete, listed, known, gone, gone, who)), who, memory).add:
            self._listings.forget()
            raise LettaError(Kind.UNREACHABLE, "it is not certain that this is the Letta whose agents are mirrored")
        row = self._new_row(agent, set())
        await self._db.write(lambda conn: self._lifecycle.add(conn, [row]))
        log.info("new agent", extra={"action": "agent_new", "agent": row.agent_id, "called": row.name})
        return True

    async def ours(self) -> bool:
        """Whether it is our Letta that answers, as far as it can be told from another.

        Raises:
            LettaError: it does not say which it is.
        """
        memory = await self.guard.read()
        who, fingerprint = await self._identity.ask(memory.fingerprint)
        if who is Who.UNKNOWN:
            raise LettaError(Kind.UNREACHABLE, "Letta does not say which it is")
        return _confirmed(who, fingerprint, memory) is not Who.OTHER

    # -- comparing

    async def _absences(self, rows: dict[AgentID, AgentRow]) -> list[Absence]:
        if any(row.missing_since is not None or row.state == "missing" for row in rows.values()):
            return await self._lifecycle.absences()
        return []

    async def _still_there(self, picture: Picture, memory: Remembered, listing: AgentListing) -> set[AgentID]:
        """Ask for those who seem gone by their ids: Letta can hide agents from lists. Who is there is not gone.

        Returns those of whom nothing certain is known.
        """
        if not listing.complete:
            return set()
        hidden = self._hidden.known()
        if picture.new or any(row.agent_id not in hidden for row in picture.gone):
            hidden = set()  # found earlier, perhaps in another database: no evidence where something else is amiss
        gone = [row.agent_id for row in picture.gone if row.agent_id not in hidden]
        asked_about = set(memory.frozen.gone) if memory.frozen is not None else set()
        asked = [agent_id for agent_id in gone if agent_id not in asked_about][:_ASK_AT_MOST]
        there, unsure = await self._hidden.ask(asked)
        picture.listed |= hidden | there
        picture.gone = [row for row in picture.gone if row.agent_id not in hidden | there]
        return unsure | set(gone) - set(asked)

    # -- judging

    async def _who(self, picture: Picture, memory: Remembered) -> tuple[Who, str | None]:
        """Ask only where something would follow from it."""
        if self._asked and memory.fingerprint and not (picture.new or picture.gone or memory.frozen):
            return Who.SAME, memory.fingerprint
        who, fingerprint = await self._identity.ask(memory.fingerprint)
        self._asked = self._asked or who is not Who.UNKNOWN
        return _confirmed(who, fingerprint, memory), fingerprint

    def _evidence(
        self,
        rows: dict[AgentID, AgentRow],
        listing: AgentListing,
        picture: Picture,
        memory: Remembered,
        absences: Iterable[Absence],
        who: Who,
    ) -> Evidence:
        confirmed = set(memory.confirmed.gone) if memory.confirmed else set()
        gone = {row.agent_id for row in picture.gone}
        if memory.filter_id == self._mirror.filter_id:  # nobody changed the filter: the agents lost their names or tags
            gone |= {row.agent_id for row in picture.left_out}
        lately = {one.agent_id for one in absences if one.age < 86400.0} - picture.listed
        known = {row.agent_id for row in rows.values() if row.state != "archived"}
        return Evidence(
            listing.complete,
            picture.listed,
            known - confirmed,
            gone - confirmed,
            lately - confirmed,
            who,
        )

    async def _stand(
        self,
        writer: Writer,
        verdict: Verdict,
        evidence: Evidence,
        memory: Remembered,
        fingerprint: str | None,
        done: Changes,
    ) -> None:
        """Write down what stands from now on: frozen or not, and which Letta is ours."""
        if verdict.why is not None:
            frozen = await self.guard.freeze(writer, memory, verdict.why, evidence, fingerprint)
            done.frozen = frozen.why
            if frozen is not memory.frozen:
                self.to_tell, self.settled = True, memory.frozen is not None
                extra = {"action": "guard_frozen", "why": frozen.why, "gone": len(frozen.gone), "known": frozen.known}
                log.warning("nobody is taken away until an administrator has decided", extra=extra)
        elif verdict.remove and memory.frozen is not None:
            await self.guard.thaw(writer, memory.frozen)
            self.to_tell = self.settled = True
            log.info("the list of agents is plausible again", extra={"action": "guard_thawed"})
        elif not verdict.remove:
            done.frozen = "unknown" if evidence.complete else "incomplete"
        if verdict.adopt:
            await self._adopt(writer, evidence, memory, fingerprint)
        elif self._news:
            self._news = await self.guard.news_waits(writer)

    async def _adopt(self, writer: Writer, evidence: Evidence, memory: Remembered, fingerprint: str | None) -> None:
        fingerprint = fingerprint or await self._identity.mark(memory.fingerprint)
        said = memory.confirmed is not None and memory.confirmed.another
        if fingerprint is None or (fingerprint == memory.fingerprint and evidence.who is not Who.OTHER and not said):
            return
        moved = evidence.who is Who.OTHER and bool(evidence.known)
        await self.guard.adopt(writer, fingerprint, memory.confirmed, _ADOPTED if moved else "")
        self._news = self._news or moved
        self.to_tell = self.to_tell or moved
        log.info("this is our Letta", extra={"action": "letta_adopted", "moved": moved})

    # -- what follows

    async def _take_in(
        self, writer: Writer, rows: dict[AgentID, AgentRow], picture: Picture, verdict: Verdict, done: Changes
    ) -> None:
        """Who is new, changed, or back: no evidence but the agent itself is needed for the last two."""
        for changes in _batches(picture.changed):
            written = [(row.agent_id, columns) for row, columns in changes]
            await writer.run(partial(self._lifecycle.change, changes=written))
        for returned in _batches(picture.back):
            await writer.run(partial(self._lifecycle.bring_back, agent_ids=[row.agent_id for row in returned]))
            for row in returned:
                log.info("agent is back", extra={"action": "agent_back", "agent": row.agent_id, "called": row.name})
        done.changed, done.back = len(picture.changed), len(picture.back)
        if not verdict.add:
            return
        taken = {row.mxid for row in rows.values()}
        for agents in _batches(picture.new):
            new = [self._new_row(agent, taken) for agent in agents]
            await writer.run(partial(self._lifecycle.add, rows=new))
            for added in new:
                log.info("new agent", extra={"action": "agent_new", "agent": added.agent_id, "called": added.name})
            await asyncio.sleep(0)
        done.added = len(picture.new)

    async def _let_go(
        self,
        writer: Writer,
        picture: Picture,
        verdict: Verdict,
        memory: Remembered,
        unsure: set[AgentID],
        who: Who,
        done: Changes,
    ) -> None:
        """Note who is missing: all who are gone where the list is plausible, else whose absence was confirmed."""
        confirmed = set(memory.confirmed.gone) if memory.confirmed else set()
        certain = who in (Who.SAME, Who.UNTOLD)
        leaving = [
            row
            for row in (*picture.gone, *picture.left_out)
            if verdict.remove or (certain and row.agent_id in confirmed)
        ]
        unproven = [row.agent_id for row in leaving if row.agent_id in unsure]
        there, unsure = await self._hidden.ask(unproven)
        leaving = [row for row in leaving if row.agent_id not in there | unsure]
        for batch in _batches(leaving):
            await writer.run(partial(self._lifecycle.miss, agent_ids=[row.agent_id for row in batch]))
            for row in batch:
                tell = log.info if row.agent_id in confirmed else log.warning  # of the former an admin knows already
                tell(
                    "agent is not mirrored any more: gone from Letta or left out by the configuration",
                    extra={"action": "agent_missing", "agent": row.agent_id, "called": row.name},
                )
        done.missing = len(leaving)

    async def _tidy(
        self,
        writer: Writer,
        picture: Picture,
        verdict: Verdict,
        memory: Remembered,
        absences: Sequence[Absence],
        done: Changes,
    ) -> None:
        """Let time pass for who is missing, and archive who was so for long enough."""
        if verdict.remove:
            await self._let_time_pass(writer, picture, absences, done)
            if memory.filter_id != self._mirror.filter_id:
                await self.guard.note_filter(writer, self._mirror.filter_id)

    async def _forget_confirmed(
        self,
        writer: Writer,
        rows: dict[AgentID, AgentRow],
        picture: Picture,
        memory: Remembered,
        absences: Sequence[Absence],
    ) -> None:
        """Forget confirmations that are settled. Also half a list shows who came back, and is asked about anew."""
        if memory.confirmed is None:
            return
        lately = {one.agent_id for one in absences}
        there = picture.present | self._hidden.known()
        still = [
            agent_id
            for agent_id in memory.confirmed.gone
            if agent_id not in there
            and (row := rows.get(agent_id)) is not None
            and (row.state != "archived" or agent_id in lately)
        ]
        await self.guard.keep_confirmed(writer, memory.confirmed, still)

    async def _let_time_pass(
        self, writer: Writer, picture: Picture, absences: Sequence[Absence], done: Changes
    ) -> None:
        missing = [one for one in absences if one.state == "missing" and one.agent_id not in picture.present]
        if not missing and not done.missing:
            return
        most = max(_UNWATCHED, 3 * self._mirror.poll_interval)
        looked = await self._settings.age(_LOOKED)
        unseen = 0.0 if looked is None else max(0.0, looked - most)  # Letta was away, the list was not to be believed
        watched = [] if looked is None else missing
        due = [one.agent_id for one in watched if one.age - unseen >= self._mirror.grace][:_ASK_AT_MOST]
        hidden = self._hidden.known()
        there, unsure = await self._hidden.ask([one for one in due if one not in picture.listed or one in hidden])
        due = [agent_id for agent_id in due if agent_id not in there | unsure]
        stampless = [one.agent_id for one in missing if one.age < 0 or looked is None]

        async def work(conn: Connection) -> None:
            if unseen:
                await self._lifecycle.pass_over(conn, [one.agent_id for one in missing], unseen)
            await self._lifecycle.restamp(conn, stampless)
            await self._lifecycle.archive(conn, due)
            await self._lifecycle.bring_back(conn, there)  # it came back, and Letta hides it

        if missing and (unseen or stampless or due or there):
            await writer.run(work)
        await self._settings.stamp(_LOOKED)
        for agent_id in due:
            log.warning(
                "agent was missing for long and is archived", extra={"action": "agent_archived", "agent": agent_id}
            )
        done.archived, done.back = len(due), done.back + len(there)

    def _new_row(self, agent: Agent, taken: set[MXID]) -> NewRow:
        """An agent's row; its device id is there before anything is made for it."""
        mxid, number = self._names.mxid(agent.id), 1
        while mxid in taken:  # an agent that was re-created has the puppet of the one before, which is back now
            number += 1
            mxid = self._names.mxid(AgentID(f"{agent.id}/{number}"))
        taken.add(mxid)
        return NewRow(
            agent.id,
            mxid,
            new_device_id(),
            clean(agent.name),
            clean(agent.description),
            avatar_source(agent.metadata),
            stored_tags(agent),
            agent.model,
            "due" if self._mirror.history else "",
        )


def _confirmed(who: Who, fingerprint: str | None, memory: Remembered) -> Who:
    """Another Letta that an administrator has confirmed is as good as one met for the first time."""
    confirmed = memory.confirmed
    if who is Who.OTHER and confirmed is not None and confirmed.another and confirmed.fingerprint == fingerprint:
        return Who.UNTOLD
    return who


def _cautious(verdict: Verdict, who: Who, memory: Remembered) -> Verdict:
    """What was found to be another Letta does not become ours by not saying any more who it is."""
    another = memory.frozen is not None and memory.frozen.why == Why.ANOTHER.value
    if who is Who.UNKNOWN and another and not verdict.remove:
        return replace(verdict, add=False)
    return verdict


def _batches(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))
