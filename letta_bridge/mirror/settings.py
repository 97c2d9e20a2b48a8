"""What the mirror is told by the configuration."""

from collections.abc import Callable
from dataclasses import dataclass

from ..ids import MXID


def everybody(agent_id: str, name: str, tags: tuple[str, ...]) -> bool:
    """Mirror every agent."""
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorSettings:
    """Values of the configuration, as the mirror uses them.

    ``wants`` decides by id, name and tags whether an agent is mirrored (companions never are). ``room_version`` None
    means the homeserver's default. Times are in seconds; ``avatar_hosts`` are lower-case host names. ``filter_id``
    changes whenever ``wants`` does. ``grace`` is how long an agent may be missing before it is archived; every
    ``check_every`` seconds all rooms are looked at (0: never). ``history`` says whether an agent's older lines are
    shown in its new portal; ``marker`` allows a memory block of the bridge's own in a Letta that has no other
    fingerprint.
    """

    puppet_prefix: str = "letta_"
    bot_displayname: str = "Letta Bridge"
    poll_interval: float = 60.0
    wants: Callable[[str, str, tuple[str, ...]], bool] = everybody
    filter_id: str = ""
    grace: float = 86400.0
    check_every: float = 0.0
    history: bool = False
    marker: bool = False
    space_name: str = "Letta Agents"
    invite: tuple[MXID, ...] = ()
    room_version: str | None = None
    concurrency: int = 10
    avatar_hosts: tuple[str, ...] = ()
    avatar_max_kib: int = 1024
    avatar_timeout: float = 10.0
