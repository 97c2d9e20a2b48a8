"""Jobs: steps in their order, each recorded, tried again or taken back, and what people see of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from letta_bridge import wiring
from letta_bridge.db.jobs import JobRow, NewJob, job_lane
from letta_bridge.ids import JobID, RoomID
from letta_bridge.jobs import engine as engine_module
from letta_bridge.jobs.engine import Engine
from letta_bridge.jobs.report import FAILED, LEFT, final_text
from letta_bridge.jobs.steps import JobError, JobKind, NotYetError, Step, Work
from letta_bridge.letta.errors import Kind, LettaError
from letta_bridge.matrix.homeserver import HomeserverError
from letta_bridge.mirror.trouble import MirrorError
from letta_bridge.testing.fake_homeserver import Person

from .world import BOT, World, until


class Script:
    """A kind of job with three steps that do what a test says."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.seen: list[dict[str, Any]] = []
        self.fails: dict[str, list[Exception | None]] = {}
        """By step, or ``undo <step>``: what each try comes to; the last one for ever."""
        self.holds: dict[str, asyncio.Event] = {}
        self.patience = 86400.0
        self.ending: Callable[[Any, JobRow], Any] | None = None

    @property
    def kind(self) -> JobKind:
        names = ("one", "two", "three")
        steps = tuple(Step(name, f"step {name}", self._run(name), self._undo(name)) for name in names)
        return JobKind("script", lambda job: "A script", lambda job: steps, self.ending, self.patience)

    def _run(self, name: str) -> Callable[[Work], Any]:
        async def run(work: Work) -> Any:
            await self._do(name, work)
            return {"made by": name, "try": work.job.attempts}

        return run

    def _undo(self, name: str) -> Callable[[Work], Any]:
        async def undo(work: Work) -> None:
            await self._do(f"undo {name}", work)

        return undo

    async def _do(self, what: str, work: Work) -> None:
        self.ran.append(what)
        self.seen.append(dict(work.done))
        if what in self.holds:
            await self.holds[what].wait()
        left = self.fails.get(what, [])
        error = (left.pop(0) if len(left) > 1 else left[0]) if left else None
        if error is not None:
            raise error


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses shorter than in life."""
    monkeypatch.setattr(engine_module, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(engine_module, "_LONGEST_PAUSE", 0.05)


def install(world: World, script: Script) -> Engine:
    """Let the running bridge know the script's kind alone."""
    assert world.bridge is not None
    engine = Engine(world.bridge.desk, [script.kind])
    world.bridge.lanes.handle("job", engine.handle)
    return engine


async def begin(world: World, engine: Engine, key: str = "k", **more: Any) -> JobID:
    bridge = world.bridge
    assert bridge is not None
    new = NewJob(kind="script", key=key, asked_by="@admin:test.local", args={"a": 1}, **more)
    job_id = await bridge.db.write(lambda conn: engine.begin(conn, new))
    bridge.lanes.wake(job_lane(job_id))
    return job_id


async def ended(world: World, job_id: JobID, timeout: float = 10.0) -> JobRow:
    bridge = world.bridge
    assert bridge is not None

    async def over() -> JobRow | None:
        job = await bridge.desk.jobs.get(job_id)
        return job if job is not None and not job.open else None

    return await until(over, timeout, why="the job did not end")  # type: ignore[no-any-return]


async def run(world: World, script: Script, **more: Any) -> JobRow:
    engine = install(world, script)
    return await ended(world, await begin(world, engine, **more))


async def told(world: World) -> tuple[Person, str]:
    """Somebody in a direct chat with the bot."""
    admin = await world.hs.person("admin")
    room = await admin.create_dm(BOT)
    await admin.wait_joined(room, BOT)
    return admin, room


async def shows(person: Person, room: str, words: str) -> None:
    """Wait until the bot's words are to be seen."""
    await person.wait_message(room, sender=BOT, text=lambda body: words in body, timeout=10.0)


def reports(person: Person, room: str) -> list[str]:
    return [m.body for m in person.messages(room) if m.sender == BOT and "script" in m.body]


# -- forward


async def test_every_step_once_in_order_and_its_result_kept(world: World) -> None:
    script = Script()
    await world.start()
    job = await run(world, script)
    assert script.ran == ["one", "two", "three"]
    assert (job.state, job.error) == ("done", "")
    assert job.done == {name: {"made by": name, "try": 0} for name in ("one", "two", "three")}
    assert list(script.seen[2]) == ["one", "two"]


async def test_a_job_that_is_begun_twice_is_one(world: World) -> None:
    script = Script()
    await world.start()
    engine = install(world, script)
    first, second = await begin(world, engine), await begin(world, engine)
    await ended(world, first)
    assert first == second
    assert await begin(world, engine) == first
    assert script.ran == ["one", "two", "three"]


async def test_people_see_one_message_that_ends_with_every_step_done(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()

    async def ending(desk: Any, job: JobRow) -> str:
        return "All is well."

    script.ending = ending
    await world.start()
    admin, room = await told(world)
    script.holds["two"] = asyncio.Event()
    engine = install(world, script)
    job_id = await begin(world, engine, room_id=RoomID(room))
    await shows(admin, room, "⏳ step one")
    await shows(admin, room, "⏳ step two")  # it takes so long that somebody might wonder
    assert len(reports(admin, room)) == 1
    script.holds["two"].set()
    await ended(world, job_id)
    await shows(admin, room, "All is well")
    (body,) = reports(admin, room)
    assert body.count("✅") == 3
    assert f"(job {job_id})" in body
    assert "⏳" not in body


async def test_quick_steps_are_not_shown_one_by_one(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()
    await world.start()
    admin, room = await told(world)
    job = await run(world, script, room_id=RoomID(room))
    await until(lambda: "✅ step three" in "".join(reports(admin, room)))
    bridge = world.bridge
    assert bridge is not None
    rows = await bridge.db.fetch("SELECT edits FROM outbox WHERE room_id = $1 AND state = 'sent'", room)
    assert len(rows) <= 3, "a job of a moment is not worth an edit for each step"
    assert job.state == "done"


@pytest.mark.parametrize(
    "error",
    [
        NotYetError("somebody is asleep"),
        HomeserverError(0, "", "gone"),
        HomeserverError(429, "M_LIMIT_EXCEEDED", "slowly", 0.01),
        LettaError(Kind.UNREACHABLE, "gone"),
        LettaError(Kind.TIMEOUT, "slow"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error}"[:40],
)
async def test_somebody_who_is_away_is_waited_for(sqlite_world: World, error: Exception) -> None:
    world, script = sqlite_world, Script()
    script.fails["two"] = [error] * 8 + [None]
    await world.start()
    job = await run(world, script)
    assert job.state == "done"
    assert script.ran == ["one", *["two"] * 9, "three"]


@pytest.mark.parametrize(
    "error",
    [
        HomeserverError(500, "M_UNKNOWN", "Internal server error"),
        LettaError(Kind.INTERNAL, "HTTP 500"),
        MirrorError("odd"),
        MirrorError("another room is there", conflict=True),
        RuntimeError("nobody thought of this"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_never_pass_is_tried_a_few_times_only(sqlite_world: World, error: Exception) -> None:
    world, script = sqlite_world, Script()
    script.fails["two"] = [error]
    await world.start()
    job = await run(world, script)
    assert script.ran == ["one", *["two"] * engine_module._TRIES, "undo two", "undo one"]
    assert (job.state, job.done) == ("failed", {FAILED: "two"})


async def test_a_few_tries_are_enough_for_trouble_that_passes(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()
    script.fails["two"] = (
        [LettaError(Kind.UNREACHABLE, "gone")] * 6 + [LettaError(Kind.INTERNAL, "HTTP 500")] * 4 + [None]
    )  # type: ignore[list-item]
    await world.start()
    assert (await run(world, script)).state == "done"


async def test_waiting_is_told_with_its_reason(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()
    script.fails["two"] = [LettaError(Kind.UNREACHABLE, "gone")]
    await world.start()
    admin, room = await told(world)
    engine = install(world, script)
    job_id = await begin(world, engine, room_id=RoomID(room))
    await shows(admin, room, "Waiting: Letta cannot be reached")
    script.fails["two"] = [None]
    await ended(world, job_id)
    await until(lambda: "✅ step three" in "".join(reports(admin, room)))
    assert len(reports(admin, room)) == 1
    assert "Waiting" not in reports(admin, room)[0]


# -- back


async def test_what_was_done_is_taken_back_in_reverse_and_the_failed_step_too(world: World) -> None:
    script = Script()
    script.fails["three"] = [JobError("there is no such thing")]
    await world.start()
    job = await run(world, script)
    assert script.ran == ["one", "two", "three", "undo three", "undo two", "undo one"]
    assert script.seen[3]["three"] is None
    assert script.seen[4]["two"] == {"made by": "two", "try": 0}
    assert (job.state, job.error) == ("failed", "there is no such thing")
    assert script.ran.count("undo one") == 1


async def test_report_of_a_job_that_was_taken_back(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()
    script.fails["two"] = [JobError("there is no such thing")]
    await world.start()
    admin, room = await told(world)
    await run(world, script, room_id=RoomID(room))
    await shows(admin, room, "It was not done")
    (body,) = reports(admin, room)
    assert "↩️ step one" in body
    assert "❌ step two" in body
    assert "▫️ step three" in body
    assert "there is no such thing" in body
    assert "was taken back" in body


async def test_nothing_changed_is_said_when_the_first_step_fails(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()
    script.fails["one"] = [JobError("no")]
    await world.start()
    job = await run(world, script)
    bridge = world.bridge
    assert bridge is not None
    text = await final_text(bridge.desk, job, script.kind, job.state, job.error)
    assert "Nothing was changed." in text


async def test_taking_back_waits_for_who_is_away(world: World) -> None:
    script = Script()
    script.fails["two"] = [JobError("no")]
    ill = [HomeserverError(500, "M_UNKNOWN", "Internal server error"), LettaError(Kind.INTERNAL, "HTTP 500")]
    script.fails["undo one"] = [HomeserverError(0, "", "gone")] * 3 + ill * 5 + [None]
    await world.start()
    job = await run(world, script)
    assert script.ran == ["one", "two", "undo two", *["undo one"] * 14]
    assert (job.state, job.error) == ("failed", "no")


async def test_what_cannot_be_taken_back_is_named(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()
    script.fails["three"] = [JobError("no")]
    script.fails["undo two"] = [HomeserverError(403, "M_FORBIDDEN", "You may not")]
    await world.start()
    job = await run(world, script)
    assert script.ran[-3:] == ["undo three", "undo two", "undo one"]
    assert job.done == {FAILED: "three", LEFT: ["two"]}
    bridge = world.bridge
    assert bridge is not None
    text = await final_text(bridge.desk, job, script.kind, job.state, job.error)
    assert "could not be taken back, and may be left over: step two" in text
    assert "↩️ step one" in text
    assert "✅ step two" in text


async def test_patience_ends(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()
    script.fails["two"] = [NotYetError("it is not time")]
    script.patience = 0.3
    await world.start()
    job = await run(world, script)
    assert (job.state, job.error) == ("failed", "it is not time")
    assert script.ran[-2:] == ["undo two", "undo one"]
    assert script.ran.count("two") > 2


# -- restarts and odd ends


async def test_a_new_process_goes_on_with_the_step_that_was_not_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script()
    monkeypatch.setattr(wiring, "KINDS", (script.kind,))
    script.holds["two"] = asyncio.Event()
    bridge = await world.start()
    job_id = await begin(world, bridge.engine)
    await until(lambda: script.ran == ["one", "two"])
    await world.stop()
    script.holds.clear()
    await world.start()
    job = await ended(world, job_id)
    assert job.state == "done"
    assert script.ran == ["one", "two", "two", "three"]


async def test_a_job_of_an_unknown_kind_is_closed_and_says_so(world: World) -> None:
    await world.start()
    bridge = world.bridge
    assert bridge is not None
    new = NewJob(kind="of tomorrow", key="k", asked_by="ctl", args={})
    job_id = await bridge.db.write(lambda conn: bridge.desk.jobs.add(conn, new))
    bridge.lanes.wake(job_lane(job_id))
    job = await ended(world, job_id)
    assert (job.state, job.error) == ("failed", "this version of the bridge does not know such a job")


async def test_an_ending_that_breaks_does_not_hold_up_the_end(sqlite_world: World) -> None:
    world, script = sqlite_world, Script()

    async def ending(desk: Any, job: JobRow) -> str:
        raise KeyError("gone")

    script.ending = ending
    await world.start()
    admin, room = await told(world)
    job = await run(world, script, room_id=RoomID(room))
    assert job.state == "done"
    await until(lambda: "✅ step three" in "".join(reports(admin, room)))


async def test_a_step_whose_lane_was_lost_is_not_recorded_but_made_again(world: World) -> None:
    script = Script()
    script.holds["two"] = asyncio.Event()
    await world.start()
    bridge = world.bridge
    assert bridge is not None
    job_id = await begin(world, install(world, script))
    await until(lambda: script.ran == ["one", "two"])

    async def taken(conn: Any) -> None:  # by a replica that is dead since
        await conn.execute("UPDATE lane SET owner = 'another', epoch = epoch + 1 WHERE lane = $1", job_lane(job_id))

    await bridge.db.write(taken)
    script.holds["two"].set()

    async def again() -> bool:
        bridge.lanes.wake(job_lane(job_id))
        job = await bridge.desk.jobs.get(job_id)
        return job is not None and not job.open

    await until(again)
    assert script.ran == ["one", "two", "two", "three"]


async def test_what_was_asked_for_is_forgotten_a_while_after_its_end(world: World) -> None:
    bridge = await world.start()
    script = Script()
    engine = install(world, script)
    over = await ended(world, await begin(world, engine, key="over"))
    script.holds["one"] = asyncio.Event()
    under_way = await begin(world, engine, key="under way")
    long_ago = "UPDATE job SET created_at = 0, finished_at = CASE WHEN finished_at IS NULL THEN NULL ELSE 0.0 END"
    await bridge.db.write(lambda conn: conn.execute(long_ago))
    await bridge.desk.jobs.prune(30 * 86400.0)
    assert await bridge.desk.jobs.get(over.job_id) is None
    assert await bridge.desk.jobs.get(under_way) is not None, "what is not over is never forgotten"
    script.holds["one"].set()
    await ended(world, under_way)
