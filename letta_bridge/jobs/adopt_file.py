"""``agent_user_mappings.json`` of Letta-Matrix, read with suspicion: what in it is usable, and what is not and why.

The file has an object for each agent, by the agent's id::

    {"agent-…": {"agent_id": "agent-…", "agent_name": "Meridian", "matrix_user_id": "@agent_…:example.org",
                 "matrix_password": "…", "created": true, "room_id": "!…:example.org", "room_created": true,
                 "invitation_status": {"@admin:example.org": "joined"}, "removed_at": "2025-…"}}

``invitation_status`` and ``removed_at`` may be missing, ``room_id`` may be null. Passwords are never looked at.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LARGEST = 16 * 1024 * 1024
"""Bytes: some 20,000 agents."""
MOST_PEOPLE = 500
_LONGEST_ID = 255


class MappingsError(Exception):
    """The file cannot be used at all; the text says why."""


@dataclass(frozen=True, slots=True)
class OldAgent:
    """One agent of the file, without its password. ``room_id`` is empty where it had no room."""

    agent_id: str
    name: str
    user: str
    room_id: str
    people: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(slots=True)
class Mappings:
    """What is in the file. ``skipped`` says of entries that cannot be used why not; ``users`` are all old users."""

    agents: list[OldAgent] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    users: set[str] = field(default_factory=set)


def read(path: Path) -> Mappings:
    """Read the file.

    Raises:
        MappingsError: there is none, it is too large, or it is no such file.
    """
    try:
        if not path.is_file():
            raise MappingsError(f"{path} is no file")
        if (size := path.stat().st_size) > LARGEST:
            raise MappingsError(f"{path} has {size:,} bytes; at most {LARGEST:,} are read")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MappingsError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise MappingsError(f"{path} is not a text in UTF-8") from None
    return parse(text, str(path))


def parse(text: str, name: str = "the file") -> Mappings:
    """What is in the text of such a file.

    Raises:
        MappingsError: it is no such file.
    """
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        counted = Counter(key for key, _ in items)
        twice.extend(key for key, number in counted.items() if number > 1 and key.startswith("agent"))
        return dict(items)

    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise MappingsError(f"{name} is no JSON") from None
    if not isinstance(value, dict) or not value:
        raise MappingsError(f"{name} is not a list of agents as Letta-Matrix writes it (an object with agents' ids)")
    found = Mappings()
    for key, entry in value.items():
        if key in twice and key not in ("agent_id", "agent_name"):
            found.skipped.append(f"{_shown(key)}: it is in the file more than once")
            continue
        mapping = _mapping(key, entry)
        if isinstance(mapping, str):
            found.skipped.append(f"{_shown(key)}: {mapping}")
        else:
            found.agents.append(mapping)
    found.users = {entry["matrix_user_id"] for entry in value.values() if _has_user(entry)}
    _drop_doubles(found)
    return found


def _has_user(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("matrix_user_id"), str)


def _mapping(key: str, entry: object) -> OldAgent | str:
    """The entry, or what is wrong with it."""
    if not isinstance(entry, dict):
        return "its entry is no object"
    wrong = [name for name in ("agent_id", "agent_name", "matrix_user_id") if not isinstance(entry.get(name), str)]
    if wrong:
        return f"{' and '.join(wrong)} missing, or no text"
    if entry["agent_id"] != key:
        return "its agent_id is another one than the name of its entry"
    if not key or len(key) > _LONGEST_ID or not key.isprintable():
        return "that is no agent's id"
    room_id = entry.get("room_id")
    if room_id is not None and not _is_id(room_id, "!"):
        return "its room_id is no room's id"
    if entry.get("removed_at"):
        return "Letta-Matrix has it as removed"
    invited = entry.get("invitation_status")
    if invited is not None and not isinstance(invited, dict):
        return "its invitation_status is no object"
    people = _people(invited or {})
    if len(people) > MOST_PEOPLE:
        return f"more than {MOST_PEOPLE} people are named for it"
    return OldAgent(key, entry["agent_name"][:_LONGEST_ID], entry["matrix_user_id"], room_id or "", people)


def _people(invited: Mapping[Any, Any]) -> tuple[str, ...]:
    return tuple(sorted(who for who in invited if is_user(who)))


def is_user(text: object) -> bool:
    """Whether this is a full Matrix user id."""
    return _is_id(text, "@") and ":" in str(text)[1:-1]


def _is_id(text: object, sigil: str) -> bool:
    return (
        isinstance(text, str)
        and text.startswith(sigil)
        and 1 < len(text) <= _LONGEST_ID
        and text.isprintable()
        and not any(char.isspace() or char in "`<>\"'" for char in text)
    )


def _drop_doubles(found: Mappings) -> None:
    """Two agents that claim one room or one user: it is not known whose it is, so neither gets what was there."""
    rooms = Counter(mapping.room_id for mapping in found.agents if mapping.room_id)
    kept: list[OldAgent] = []
    for mapping in found.agents:
        if mapping.room_id and rooms[mapping.room_id] > 1:
            found.skipped.append(f"{_shown(mapping.agent_id)}: another agent has the same room, {mapping.room_id}")
        else:
            kept.append(mapping)
    found.agents = kept


def _shown(key: str) -> str:
    """An id from the file, harmless."""
    text = "".join(char if char.isprintable() and char != "`" else "?" for char in key)
    return f"`{text[:80]}`"


def old_users(users: Iterable[str], domains: Iterable[str]) -> set[str]:
    """Accounts of Letta-Matrix that are no people: its agents' and its bot's."""
    return {*users, *(f"@letta:{domain}" for domain in domains)}
