"""One use of a command: who asks, where, and for what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..ids import RoomID
from ..routing.permissions import Level
from .desk import Desk
from .table import Command, Table

if TYPE_CHECKING:
    from ..jobs.engine import Engine

CTL = "ctl"
"""Who asks on the command line: whoever may use the bridge's socket, and so read its database and its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A command with what it was given.

    Attributes:
        who: the Matrix id of who asks, or :data:`CTL`.
        level: what that person may do with the bridge as a whole; ``ctl`` is an admin.
        via: ``room`` or ``ctl``.
        key: names this call for ever; what it begins derives its own key from it.
        room_id: where it was asked; empty on the command line.
        thread_root: the thread in which it was asked, or empty.
        management: asked where only admins read: in a management room, a direct chat with the bot, on the command line.
        bot_here: whether the bot is in the room, and so can show there how far a job is.
        args: by the names of the command's arguments and options; None (False for switches) for what was not given.
    """

    desk: Desk
    engine: "Engine"
    table: Table
    command: Command
    who: str
    level: Level
    via: Literal["room", "ctl"]
    key: str
    room_id: RoomID
    thread_root: str
    management: bool
    args: Mapping[str, Any]
    bot_here: bool = True

    @property
    def job_room(self) -> RoomID:
        """Where a job that is begun by it shows its progress; empty: nowhere."""
        return self.room_id if self.bot_here else RoomID("")

    @property
    def admin(self) -> bool:
        """Whether everything is allowed."""
        return self.level >= Level.ADMIN
