"""What agents have to do: the ``turn`` and ``turn_event`` tables."""

from .queueing import Queueing
from .turn_rows import OPEN, Begun, NewMessage, OtidMaker, TurnMessage, TurnRow, WaitingRoom, agent_lane
from .waiting import Waiting

__all__ = [
    "OPEN",
    "Begun",
    "NewMessage",
    "OtidMaker",
    "TurnMessage",
    "TurnRow",
    "Turns",
    "WaitingRoom",
    "agent_lane",
]


class Turns(Queueing, Waiting):
    """All statements on turns. Methods that take a connection belong into the caller's transaction.

    How a message gets into a turn is in ``queueing.py``, what becomes of the turn in ``hand_over.py``, and what the
    lanes and commands ask in ``waiting.py``.
    """
