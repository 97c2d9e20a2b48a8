"""Earlier conversations on a real Synapse: the times at which things were said, and who said them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from nio import MessageDirection, RoomMessagesResponse

from .nio_person import NioPerson
from .world import World, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

WHEN = datetime(2025, 5, 3, 14, 2, 0, tzinfo=UTC)
FIRST = int(WHEN.timestamp() * 1000)
MARK = "dev.letta_bridge.message"


async def imported(person: NioPerson, room: str) -> list[dict[str, Any]]:
    """What an import has put into a room, oldest first, as Synapse gives it."""
    answer = await person.client.room_messages(room, start="", direction=MessageDirection.back, limit=100)
    assert isinstance(answer, RoomMessagesResponse), answer
    events = [event.source for event in reversed(answer.chunk)]
    return [event for event in events if event.get("content", {}).get(MARK, {}).get("imported")]


async def all_of(person: NioPerson, room: str, number: int) -> list[dict[str, Any]]:
    async def there() -> list[dict[str, Any]] | None:
        events = await imported(person, room)
        return events if len(events) >= number else None

    return await until(there, f"no {number} imported events") or []


async def test_lines_carry_the_time_at_which_they_were_said(world: World) -> None:
    host = await world.client(world.guests.host)
    agent = world.letta.add_agent("Elder")
    world.letta.seed_history(agent, [("user", "What is new?"), ("assistant", "Nothing."), ("user", "Sure?")], at=WHEN)
    room = await world.portal(host, agent)
    events = await all_of(host, room, 5)
    assert [event["origin_server_ts"] for event in events[:4]] == [FIRST, FIRST, FIRST + 1, FIRST + 2]
    assert events[4]["origin_server_ts"] > FIRST + 100_000
    assert [event["sender"] for event in events] == [world.bot, world.bot, world.puppet(agent), world.bot, world.bot]
    assert "2025" not in "".join(event["content"]["body"] for event in events), "the time is in the event, not the text"
    await world.ask(host, room, agent, "and now?", "and now?")
    assert len(await imported(host, room)) == 5
    assert world.bodies(agent) == ["and now?"], "nothing of the past was answered"
