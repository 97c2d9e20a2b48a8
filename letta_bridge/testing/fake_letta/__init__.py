"""FakeLetta: an imitation of the Letta V1 server 0.16.8, with its bad habits, over real HTTP."""

from .faults import Fault
from .script import Behaviour, Hold
from .server import FakeLetta
from .state import Turn

__all__ = ["Behaviour", "FakeLetta", "Fault", "Hold", "Turn"]
