"""What may be believed of a list of agents: the difference between "they were deleted" and "this is not our Letta".

The rules are one pure function, :func:`judge`. What it stops stands in the database until the list is plausible again
or an administrator confirms it: ``docs/lifecycle.md`` tells it to people.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Set
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from ..db.alarms import Alarms
from ..db.database import Connection, Database
from ..ids import AgentID
from .writer import Writer

SHRINK_FEW = 2
SHRINK_PART = 0.2
"""More than two agents and more than a fifth of them are never taken away without being asked about."""
RELATED = 0.5
"""The part of the known agents that another database must have to count as the same Letta, moved or restored."""

ALARM_GUARD = "guard"
ALARM_ANOTHER = "letta.another"
NEWS_ADOPTED = "letta.adopted"

_FINGERPRINT, _FROZEN, _CONFIRMED, _FILTER = "letta.fingerprint", "guard.frozen", "guard.confirmed", "mirror.filter"
_THAWED = "guard.thawed"


class Who(Enum):
    """Which Letta answers, by its fingerprint."""

    SAME = "same"
    OTHER = "other"
    UNTOLD = "untold"  # it gives none, or none was known yet
    UNKNOWN = "unknown"  # it could not be asked


class Why(Enum):
    """Why nothing is taken away, until that ends or is confirmed."""

    ANOTHER = "another"
    EMPTY = "empty"
    STRANGERS = "strangers"
    SHRUNK = "shrunk"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a pass has before it.

    Attributes:
        complete: the list was read to its end.
        listed: whom it has.
        known: the mirrored agents that are not archived, without those whose absence was confirmed.
        gone: those of them that are still taken for present and would be taken away now.
        lately: those that went within the last day and count with them.
        who: which Letta this is.
    """

    complete: bool
    listed: Set[AgentID]
    known: Set[AgentID]
    gone: Set[AgentID]
    lately: Set[AgentID]
    who: Who


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may follow. ``why``: it is frozen; ``adopt``: the fingerprint is the one of our Letta from now on."""

    add: bool
    remove: bool
    why: Why | None = None
    adopt: bool = False


def judge(evidence: Evidence) -> Verdict:
    """What may be made of a list. What is not certain changes nothing; only ``why`` lasts beyond the pass."""
    known, who = evidence.known, evidence.who
    overlap = len(known & evidence.listed)
    if not evidence.complete:
        return Verdict(add=who is not Who.OTHER and (overlap > 0 or not known), remove=False)
    related = not known or overlap >= RELATED * len(known)
    if who is Who.OTHER and not related:
        return Verdict(add=False, remove=False, why=Why.ANOTHER)
    if who is Who.UNKNOWN and (evidence.gone or not overlap):
        return Verdict(add=overlap > 0 or not known, remove=False)
    if known and not overlap:
        return Verdict(add=False, remove=False, why=Why.STRANGERS if evidence.listed else Why.EMPTY)
    adopt = related and who in (Who.OTHER, Who.UNTOLD)
    limit = max(SHRINK_FEW, SHRINK_PART * len(known | evidence.lately))
    if evidence.gone and len(evidence.gone | evidence.lately) > limit:
        return Verdict(add=True, remove=False, why=Why.SHRUNK, adopt=adopt)
    return Verdict(add=True, remove=True, adopt=adopt)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What stands frozen.

    Attributes:
        nonce: what confirms it.
        why: a :class:`Why`.
        gone: the agents that are taken away when it is confirmed; nobody else.
        before: those that were missing already: without them too a confirmed list would be one without any overlap.
        known: how many agents were known then.
        listed: how many of them were listed.
        fingerprint: of the Letta that this is about, None where it gives none.
    """

    nonce: str
    why: str
    gone: tuple[AgentID, ...]
    before: tuple[AgentID, ...]
    known: int
    listed: int
    fingerprint: str | None

    @property
    def text(self) -> str:
        """What an administrator reads: what happened, that nothing was done, what to type or to look at."""
        few = f"only {self.listed}" if self.listed else "none"
        already = self.known - self.listed - len(self.gone)
        were = f" ({already} {'was' if already == 1 else 'were'} missing already)" if already > 0 else ""
        happened = {
            Why.ANOTHER.value: (
                f"This looks like another Letta: its database has another fingerprint, and it lists {few} of the "
                f"{self.known} agents that are mirrored. "
                "Nothing is added or taken away until this is decided."
            ),
            Why.EMPTY.value: (
                f"Letta lists no agents at all, and {self.known} are mirrored. Nothing is added or taken away until "
                "this is decided."
            ),
            Why.STRANGERS.value: (
                f"Letta lists none of the {self.known} agents that are mirrored, only others. Nothing is added or "
                "taken away until this is decided."
            ),
            Why.SHRUNK.value: (
                f"{len(self.gone)} agents are gone from Letta at once or within a day: it lists {self.listed} of the "
                f"{self.known} agents that are mirrored{were}. Nobody is taken away until this is decided."
            ),
        }[self.why]
        meant = "If this is the Letta you want" if self.why == Why.ANOTHER.value else "If that was done on purpose"
        return (
            f"{happened}\n\n{meant}, say `!letta guard confirm {self.nonce}`; `!letta guard` shows who is gone. If "
            "not, look at letta.url and at Letta's database: this ends by itself when the agents are listed again."
        )


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What an administrator confirmed. ``another``: also that the Letta with this fingerprint is ours."""

    nonce: str
    gone: tuple[AgentID, ...]
    another: bool
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What passes before this one left behind. ``thawed``: what was frozen last, and is not any more."""

    fingerprint: str | None
    frozen: Frozen | None
    confirmed: Confirmed | None
    filter_id: str | None
    thawed: Frozen | None = None


class Guard:
    """Keeps in the database what is frozen, what was confirmed, and which Letta is ours."""

    def __init__(self, db: Database, alarms: Alarms) -> None:
        self._db = db
        self._alarms = alarms

    async def read(self) -> Remembered:
        """What is known now."""
        names = (_FINGERPRINT, _FROZEN, _CONFIRMED, _FILTER, _THAWED)
        rows = await self._db.fetch("SELECT name, value FROM setting WHERE name IN ($1, $2, $3, $4, $5)", *names)
        values = {str(row["name"]): str(row["value"]) for row in rows}
        return Remembered(
            values.get(_FINGERPRINT),
            _record(Frozen, values.get(_FROZEN)),
            _record(Confirmed, values.get(_CONFIRMED)),
            values.get(_FILTER),
            _record(Frozen, values.get(_THAWED)),
        )

    async def in_doubt(self) -> bool:
        """Whether an administrator has yet to decide what it means that agents are not there: that Letta lacks one of
        those that are mirrored proves nothing then.
        """
        return (await self.read()).frozen is not None

    async def freeze(
        self, writer: Writer, memory: Remembered, why: Why, evidence: Evidence, fingerprint: str | None
    ) -> Frozen:
        """Keep it frozen, or freeze it: an administrator is asked about what is seen now.

        What was asked about stays the question, with its nonce, as long as it is about some of the same agents. One
        that comes up again just as it was, unanswered, is the same question too: a Letta that flips is told once.
        """
        now = memory.frozen
        same = now is not None and now.why == why.value and now.fingerprint == fingerprint
        if now is not None and same and (not now.gone or not evidence.gone or set(now.gone) & evidence.gone):
            return now
        frozen = Frozen(
            secrets.token_hex(2),
            why.value,
            tuple(sorted(evidence.gone)),
            tuple(sorted((evidence.lately | (evidence.known - evidence.listed)) - evidence.gone)),
            len(evidence.known),
            len(evidence.known & evidence.listed),
            fingerprint,
        )
        before, answered = memory.thawed, memory.confirmed.nonce if memory.confirmed else ""
        if before is not None and before.nonce != answered and replace(frozen, nonce=before.nonce) == before:
            frozen = before

        async def work(conn: Connection) -> None:
            await _set(conn, _FROZEN, json.dumps(asdict(frozen)))
            topic, other = (ALARM_ANOTHER, ALARM_GUARD) if why is Why.ANOTHER else (ALARM_GUARD, ALARM_ANOTHER)
            await self._alarms.renew(conn, topic, frozen.text)
            await self._alarms.clear(conn, other)

        await writer.run(work)
        return frozen

    async def thaw(self, writer: Writer, frozen: Frozen) -> None:
        """The list is plausible again, or what was asked was confirmed."""

        async def work(conn: Connection) -> None:
            await _set(conn, _THAWED, json.dumps(asdict(frozen)))
            await conn.execute("DELETE FROM setting WHERE name = $1", _FROZEN)
            await self._alarms.clear(conn, ALARM_GUARD)
            await self._alarms.clear(conn, ALARM_ANOTHER)

        await writer.run(work)

    async def adopt(self, writer: Writer, fingerprint: str, confirmed: Confirmed | None, news: str) -> None:
        """This fingerprint is the one of our Letta from now on; ``news`` is told once where it is not empty."""

        async def work(conn: Connection) -> None:
            await _set(conn, _FINGERPRINT, fingerprint)
            if confirmed is not None and confirmed.another:  # it was said of this Letta, not of the next
                await _change_confirmed(conn, confirmed, lambda stands: replace(stands, another=False))
            if news:
                await self._alarms.renew(conn, NEWS_ADOPTED, news)

        await writer.run(work)

    async def news_waits(self, writer: Writer) -> bool:
        """Whether news of ours wait to be told; told ones are forgotten."""
        row = await self._db.fetchrow("SELECT told_at FROM alarm WHERE topic = $1", NEWS_ADOPTED)
        if row is None or row["told_at"] is None:
            return row is not None
        await writer.run(lambda conn: self._alarms.drop_told(conn, NEWS_ADOPTED))
        return False

    async def keep_confirmed(self, writer: Writer, confirmed: Confirmed, still: Iterable[AgentID]) -> None:
        """Only these of the confirmed absences still matter: whoever came back is asked about anew."""
        left = tuple(sorted(still))
        if left == tuple(sorted(confirmed.gone)):
            return

        def kept(stands: Confirmed) -> Confirmed | None:
            return replace(stands, gone=left) if left or stands.another else None

        await writer.run(lambda conn: _change_confirmed(conn, confirmed, kept))

    async def note_filter(self, writer: Writer, filter_id: str) -> None:
        """Whom the configuration leaves out was taken in."""
        await writer.run(lambda conn: _set(conn, _FILTER, filter_id))

    async def confirm(self, conn: Connection, nonce: str) -> bool:
        """Within the caller's transaction: what is frozen under this nonce is as it should be; False if nothing is.

        Confirmed twice is confirmed once.
        """
        frozen = _record(Frozen, await conn.fetchval("SELECT value FROM setting WHERE name = $1", _FROZEN))
        before = _record(Confirmed, await conn.fetchval("SELECT value FROM setting WHERE name = $1", _CONFIRMED))
        if before is not None and before.nonce == nonce:
            return True
        if frozen is None or frozen.nonce != nonce:
            return False
        gone = {*frozen.gone, *frozen.before, *(before.gone if before else ())}
        confirmed = Confirmed(nonce, tuple(sorted(gone)), frozen.why == Why.ANOTHER.value, frozen.fingerprint)
        await _set(conn, _CONFIRMED, json.dumps(asdict(confirmed)))
        return True


async def _set(conn: Connection, name: str, value: str) -> None:
    await conn.execute(
        "INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2", name, value
    )


async def _change_confirmed(
    conn: Connection, before: Confirmed, change: Callable[[Confirmed], Confirmed | None]
) -> None:
    """Change the answer that the pass knows, or forget it; a newer one, given meanwhile, stays as it is."""
    value = await conn.fetchval("UPDATE setting SET value = value WHERE name = $1 RETURNING value", _CONFIRMED)
    stands = _record(Confirmed, value)
    if stands is None or stands.nonce != before.nonce:
        return
    now = change(stands)
    if now is None:
        await conn.execute("DELETE FROM setting WHERE name = $1", _CONFIRMED)
    else:
        await _set(conn, _CONFIRMED, json.dumps(asdict(now)))


def _record(kind: Any, value: str | None) -> Any:
    if value is None:
        return None
    fields = {key: tuple(item) if isinstance(item, list) else item for key, item in json.loads(value).items()}
    return kind(**fields)
