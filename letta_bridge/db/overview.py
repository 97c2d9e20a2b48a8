"""What lists show of agents, rooms and people: a few bounded queries over everything."""

from dataclasses import dataclass, field

from ..ids import MXID, AgentID, RoomID
from .database import Database
from .turns import OPEN

_RECENT = 50_000
"""Turns and messages among which the last of an agent or a person is looked for."""


@dataclass(slots=True)
class RoomLook:
    """A room in which somebody of ours is."""

    room_id: RoomID
    name: str
    joined: list[MXID] = field(default_factory=list)
    invited: list[MXID] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Work:
    """What an agent has to do, and when it last had something: seconds ago, None when that is long past or never."""

    waiting: int = 0
    last: float | None = None
    last_state: str = ""
    last_error: str = ""


async def rooms(db: Database) -> list[RoomLook]:
    """Every room that anybody is known to be in or invited to, with who that is."""
    found: dict[str, RoomLook] = {}
    rows = await db.fetch(
        "SELECT m.room_id, m.user_id, m.membership, COALESCE(r.name, '') AS name FROM member m LEFT JOIN room r "
        "ON r.room_id = m.room_id WHERE m.membership IN ('join', 'invite') ORDER BY m.room_id, m.user_id"
    )
    for row in rows:
        look = found.setdefault(row["room_id"], RoomLook(RoomID(row["room_id"]), row["name"]))
        (look.joined if row["membership"] == "join" else look.invited).append(MXID(row["user_id"]))
    return list(found.values())


async def work(db: Database, only: AgentID | None = None) -> dict[AgentID, Work]:
    """What each agent has to do (or only one), for those that have or had something."""
    one = only or ""
    waiting = {
        row["agent_id"]: int(row["n"])
        for row in await db.fetch(
            "SELECT t.agent_id, COUNT(*) AS n FROM turn t JOIN turn_event e ON e.turn_id = t.turn_id "
            f"WHERE e.withdrawn = 0 AND t.state IN {OPEN} AND ($1 = '' OR t.agent_id = $1) GROUP BY t.agent_id",
            one,
        )
    }
    newest = await db.fetch(
        f"SELECT t.agent_id, t.state, t.error, {db.now} - COALESCE(t.finished_at, t.replying_at, t.created_at) AS age "
        "FROM turn t JOIN (SELECT agent_id, MAX(turn_id) AS newest FROM turn WHERE turn_id > "
        f"(SELECT COALESCE(MAX(turn_id), 0) FROM turn) - {_RECENT} AND ($1 = '' OR agent_id = $1) "
        "AND state IN ('replying', 'done', 'dead', 'cancelled') GROUP BY agent_id) n ON n.newest = t.turn_id",
        one,
    )
    found = {
        row["agent_id"]: Work(waiting.pop(row["agent_id"], 0), float(row["age"]), row["state"], row["error"])
        for row in newest
    }
    found |= {agent_id: Work(number) for agent_id, number in waiting.items()}
    return {AgentID(agent_id): one_work for agent_id, one_work in found.items()}


async def last_words(db: Database) -> dict[MXID, float]:
    """Seconds since each person last wrote to an agent."""
    rows = await db.fetch(
        f"SELECT sender, {db.now} - MAX(created_at) AS age FROM turn_event WHERE sender <> '' GROUP BY sender"
    )  # whose a message from before a restore was is not always known
    return {MXID(row["sender"]): float(row["age"]) for row in rows}
