"""Every kind of job."""

from .adopt import ADOPT
from .cleanup import CLEANUP
from .despawn import DESPAWN, RECALL
from .group import ROOM
from .history import HISTORY
from .rebind import REBIND
from .reset import RESET
from .steps import JobKind
from .summon import SUMMON

KINDS: tuple[JobKind, ...] = (SUMMON, DESPAWN, RECALL, REBIND, ROOM, HISTORY, CLEANUP, RESET, ADOPT)
