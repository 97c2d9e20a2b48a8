"""How long a summon takes, as the person sees it who asks for it."""

import time
from collections.abc import Sequence

from ..ids import RoomID
from .person import Message, Person

_DONE, _FAILED = "open its room", "It was not done"


async def summon(person: Person, room_id: RoomID, name: str, *, more: str = "", seconds: float = 60) -> float:
    """Let a person summon an agent in a room with the bridge's bot.

    Returns:
        Seconds from before the command was sent until the report with the link to the agent's room was seen.

    Raises:
        AssertionError: it failed, or was not done within ``seconds``; says what was seen instead.
    """
    begun = time.monotonic()
    asked = await person.say(room_id, f"!letta summon {name} {more}".rstrip())

    def over() -> Message | None:
        mine = [m for m in person.messages(room_id, after=asked) if m.sender != person.user_id and name in m.body]
        return next((m for m in mine if _DONE in m.body or _FAILED in m.body), None)

    report = await person.wait(over, f"the end of summoning {name}", seconds)
    assert _DONE in report.body, report.body
    return max(report.seen, report.changed) - begun


async def summon_times(person: Person, room_id: RoomID, names: Sequence[str], *, more: str = "") -> list[float]:
    """Seconds of each of several summons, one after the other."""
    return [await summon(person, room_id, name, more=more) for name in names]


def percentile(times: Sequence[float], share: float) -> float:
    """The time that ``share`` of the times do not exceed."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
