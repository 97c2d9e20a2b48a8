"""Jobs and dead letters: ``jobs``, ``dead``, ``retry``, ``drop``."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..db.database import Connection
from ..db.jobs import JobRow
from ..db.letters import Letter, Letters
from ..db.turns import agent_lane
from ..delivery.outgoing import txn_id
from ..ids import JobID
from .call import Call
from .confirm import CONFIRM, REFUSED, ask, confirmed, how
from .parse import shown
from .show import ago, bullets, count, cut, escape, span
from .table import Arg, Command, CommandError, Need, Option, Reply

GROUP = "Work and dead letters"
_NEWEST = 20
_MOST_JOBS = 200
_LISTED = 50
_MOST = 10_000
_NUMBER = re.compile(r"[ito][0-9]{1,15}")
_ALL = "all"
_KINDS = {"i": "came in", "t": "to be answered", "o": "to be sent"}
_UNCERTAIN = ("uncertain", "looking")
"""Kinds of notices that say that a turn may have been delivered (see delivery/turnwork.py)."""


# -- jobs


async def _jobs(call: Call) -> Reply:
    jobs = call.desk.jobs
    if (number := call.args["job"]) is not None:
        job = await jobs.get(JobID(number))
        if job is None or not _may_see(call, job):
            raise CommandError(f"There is no job {number}. `jobs --all` lists the newest.")
        return Reply(_whole(call, job), data=_job_data(call, job))
    newest = await jobs.newest(_MOST_JOBS, only_open=not call.args["all"])
    seen = [job for job in newest if _may_see(call, job)]
    data = [_job_data(call, job) for job in seen]
    if not seen:
        return Reply(
            "There are no jobs." if call.args["all"] else "No job is open. `jobs --all` lists old ones.", data=data
        )
    lines = [_job_line(call, job) for job in seen]
    return Reply(f"{count(len(seen), 'job')}:\n\n{cut(lines, _NEWEST, '`jobs <number>` shows any')}", data=data)


def _may_see(call: Call, job: JobRow) -> bool:
    """Administrators see all jobs where nobody else reads, others what they began."""
    return (call.admin and call.management) or job.asked_by == call.who


def _job_line(call: Call, job: JobRow) -> str:
    steps = call.engine.steps(job)
    line = f"`{job.job_id}` {escape(call.engine.title(job))}: {_state(job)}, begun {ago(job.age)} by {job.asked_by}"
    if job.open and steps:
        made = sum(step.name in job.done for step in steps)
        following = next((step.label for step in steps if step.name not in job.done), "")
        line += f"; {made} of {len(steps)} steps" + (f", now: {following}" if following else "")
    return line + (f" ({escape(job.error)})" if job.error else "")


def _state(job: JobRow) -> str:
    return {"undoing": "being taken back", "open": "open"}.get(job.state, job.state)


def _whole(call: Call, job: JobRow) -> str:
    lines = [_job_line(call, job), ""]
    lines += [f"- {'✅' if step.name in job.done else '▫️'} {step.label}" for step in call.engine.steps(job)]
    if job.open and job.wait > 0:
        lines += ["", f"It is tried again in {span(job.wait)}."]
    return "\n".join(lines)


def _job_data(call: Call, job: JobRow) -> dict[str, Any]:
    return {
        "job": job.job_id,
        "kind": job.kind,
        "title": call.engine.title(job),
        "state": job.state,
        "asked_by": job.asked_by,
        "age_s": job.age,
        "error": job.error,
        "steps": [{"name": step.name, "done": step.name in job.done} for step in call.engine.steps(job)],
    }


# -- dead letters


async def _dead(call: Call) -> Reply:
    letters = await Letters(call.desk.db).all(_LISTED)
    data = [
        {
            "letter": letter.number,
            "kind": _KINDS[letter.number[0]],
            "age_s": letter.age,
            "who": letter.who,
            "room": letter.room_id,
            "agent": letter.agent_id,
            "why": letter.why,
        }
        for letter in letters
    ]
    if not letters:
        return Reply("There are no dead letters.", data=data)
    text = bullets(_line(letter) for letter in letters)
    more = f"\n\nOf each kind the newest {_LISTED} are shown." if len(letters) >= _LISTED else ""
    return Reply(
        f"{count(len(letters), 'dead letter')}:\n\n{text}{more}\n\n`retry <number>` tries one again, `drop <number>` "
        "clears it away; both take `all`.",
        data=data,
    )


def _line(letter: Letter) -> str:
    who = f" from {escape(letter.who)}" if letter.who else ""
    where = f" in `{letter.room_id}`" if letter.room_id else ""
    what = f"{_KINDS[letter.number[0]]}, {ago(letter.age)}{who}{where}"
    return f"`{letter.number}` {what}: {escape(letter.why) or 'no reason'}"


async def _chosen(call: Call) -> list[Letter]:
    """The letters that are meant.

    Raises:
        CommandError: there is none of that number.
    """
    text = call.args["letter"].casefold()
    store = Letters(call.desk.db)
    if text == _ALL:
        return sorted(await store.all(_MOST), key=lambda letter: (letter.number[0], int(letter.number[1:])))
    if not _NUMBER.fullmatch(text):
        raise CommandError(f"{shown(text)} is no dead letter; they have numbers such as `i12`. `dead` lists them.")
    letter = await store.get(text)
    if letter is None:
        raise CommandError(f"There is no dead letter {shown(text)} (any more). `dead` lists them.")
    return [letter]


async def _retry(call: Call) -> Reply:
    letters = await _chosen(call)
    if not letters:
        return Reply("There are no dead letters.", data={"again": [], "left": {}})
    left = {letter.number: why for letter in letters if (why := await _unsafe(call, letter))}
    safe = [letter for letter in letters if letter.number not in left]
    store, desk = Letters(call.desk.db), call.desk

    async def work(conn: Connection) -> list[Letter]:
        done = [letter for letter in safe if await store.again(conn, letter)]
        for lane in dict.fromkeys(_lane(letter) for letter in done):
            await desk.lanes.announce(conn, lane)
        return done

    done = await desk.db.write(work)
    for lane in dict.fromkeys(_lane(letter) for letter in done):
        desk.lanes.wake(lane)
    parts = []
    if done:
        parts.append(f"Tried again: {_numbers(done)}.")
    if left:
        parts.append("Left as they are:\n\n" + cut([f"`{number}`: {why}" for number, why in left.items()], _LISTED, ""))
    data = {"again": [letter.number for letter in done], "left": left}
    return Reply("\n\n".join(parts) or "Nothing was left to be tried again.", data=data, ok=bool(done))


def _lane(letter: Letter) -> str:
    if letter.agent_id is not None:
        return agent_lane(letter.agent_id)
    return f"room:{letter.room_id}" if letter.number[0] == "i" else f"send:{letter.room_id}"


async def _unsafe(call: Call, letter: Letter) -> str:
    """Why a letter cannot be tried again; empty when it can."""
    if not letter.kept:
        return "its text is not kept any more, or it was none that can be read; ask its sender"
    if letter.agent_id is None:
        return ""
    row = await call.desk.agents.get(letter.agent_id)
    if row is None:
        return "its agent is not known any more"
    if letter.accepted:
        return "Letta had taken it, so the agent may have read it; its sender can send it again"
    for kind in _UNCERTAIN:
        told = txn_id(row.mxid, letter.room_id, letter.source, f"notice:{kind}", 0)
        if await call.desk.outbox.state_of(told) is not None:
            return "it may have been delivered: Letta could not say; its sender can send it again"
    return ""


async def _drop(call: Call) -> Reply:
    letters = await _chosen(call)
    if not letters:
        return Reply("There are no dead letters.", data={"dropped": []})
    if call.args["letter"].casefold() == _ALL:
        what = str(len(letters))
        if call.args["confirm"] is None:
            line = how(call, await ask(call, what))
            kinds = {kind: sum(letter.number[0] == kind for letter in letters) for kind in _KINDS}
            parts = ", ".join(f"{number} {_KINDS[kind]}" for kind, number in kinds.items() if number)
            return Reply(f"This would clear {count(len(letters), 'dead letter')} away ({parts}).\n\n{line}", data=kinds)
        if not await confirmed(call, call.args["confirm"]):
            raise CommandError(REFUSED)
    store = Letters(call.desk.db)

    async def work(conn: Connection) -> list[Letter]:
        return [letter for letter in letters if await store.drop(conn, letter, call.who)]

    done = await call.desk.db.write(work)
    text = f"Cleared away: {_numbers(done)}." if done else "They were gone already."
    return Reply(text, data={"dropped": [letter.number for letter in done]})


def _numbers(letters: Sequence[Letter]) -> str:
    shown_ones = ", ".join(f"`{letter.number}`" for letter in letters[:_NEWEST])
    return shown_ones + (f" and {len(letters) - _NEWEST:,} more" if len(letters) > _NEWEST else "")


_LETTER = Arg("letter", "text", "its number in `dead`, such as `i12`, or `all`")
COMMANDS = (
    Command(
        "jobs",
        "lists what is being worked on; `jobs <number>` shows the steps of one",
        Need.USER,
        _jobs,
        GROUP,
        args=(Arg("job", "number", "the job's number", required=False),),
        options=(Option("all", "those that are over, too", switch=True),),
        details="Long work (such as `summon`) is a job: its steps are recorded, so that it outlives a restart. "
        "Administrators see every job where nobody else reads, others those that they began.",
        examples=("jobs", "jobs 12"),
    ),
    Command(
        "dead",
        "lists dead letters: what could not be decided, answered or sent",
        Need.ADMIN,
        _dead,
        GROUP,
        details="`i…` came in and could not be handled, `t…` was given up at Letta, `o…` the homeserver did not take. "
        "Texts are not shown.",
        examples=("dead",),
        private=True,
    ),
    Command(
        "retry",
        "tries a dead letter again",
        Need.ADMIN,
        _retry,
        GROUP,
        args=(_LETTER,),
        details="What came in is decided anew. A turn is queued again only where it is certain that the agent never "
        "read it. What is to be sent goes behind everything that its room has waiting. Nothing is tried whose text is "
        "not kept any more (30 days).",
        examples=("retry t7", "retry all"),
        changes=True,
        private=True,
    ),
    Command(
        "drop",
        "clears a dead letter away",
        Need.ADMIN,
        _drop,
        GROUP,
        args=(_LETTER,),
        options=(replace(CONFIRM, help="for `all`: what its preview says; the last thing on the line"),),
        details="One dead letter is cleared away at once; it was given up before, and `dead` shows it. `drop all` "
        "first shows how many that would be, and is done when the line shown is typed. What was cleared away cannot be "
        "tried again.",
        examples=("drop o5", "drop all"),
        changes=True,
        private=True,
    ),
)
