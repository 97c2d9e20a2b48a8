"""What commands and jobs work with, handed around as one thing."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..db.access import AccessTable
from ..db.agents import Agents
from ..db.alarms import Alarms
from ..db.commands import Commands
from ..db.database import Database
from ..db.inbox import Inbox
from ..db.jobs import Jobs
from ..db.management import ManagementRooms
from ..db.memory import Conversations, Settings, Told
from ..db.outbox import Outbox
from ..db.past_rooms import PastRooms
from ..db.pauses import Pauses
from ..db.rooms import Rooms
from ..db.turns import Turns
from ..lanes import Lanes
from ..letta.backend import Backend
from ..matrix.homeserver import Homeserver
from ..routing.permissions import Permissions
from ..sight import BLIND, Sight

if TYPE_CHECKING:
    from ..mirror.directory import Directory
    from ..web.health import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The parts that commands and jobs touch."""

    config: Config
    db: Database
    lanes: Lanes
    homeserver: Homeserver
    backend: Backend
    directory: "Directory"
    health: "Health"
    permissions: Permissions
    agents: Agents
    rooms: Rooms
    inbox: Inbox
    outbox: Outbox
    turns: Turns
    conversations: Conversations
    jobs: Jobs
    commands: Commands
    pauses: Pauses
    access: AccessTable
    alarms: Alarms
    management: ManagementRooms
    past_rooms: PastRooms
    settings: Settings
    told: Told
    sight: Sight = BLIND
    began: float = field(default_factory=time.monotonic)
    """When this process started; :func:`time.monotonic`."""
    check_up: Callable[[int], Awaitable[list[Mapping[str, Any]]]] | None = None
    """The checks of ``letta-bridge check`` that make sense while the bridge runs, told how many agents are taken for
    present in Letta; None in tests without them.
    """
