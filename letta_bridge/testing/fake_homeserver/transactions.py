"""How long, and under which key, a homeserver remembers a client's transaction ids."""

from .accounts import Requester
from .flavour import Flavour


class ClientTransactions:
    """Old event ids by transaction id.

    Synapse: in memory by (path, appservice or token), lost at a restart; and, when a device is named, on disk by
    (room, user, device, id). Tuwunel: for ever by (user, device, id), without the room.
    """

    def __init__(self, flavour: Flavour) -> None:
        self._flavour = flavour
        self._memory: dict[tuple[str, str], str] = {}
        self._disk: dict[tuple[str | None, ...], str] = {}

    def find(self, requester: Requester, room_id: str, path: str, txn: str) -> str | None:
        """The event that this request made earlier, None when it is new."""
        if self._flavour.txn_per_user:
            return self._disk.get((requester.user_id, requester.device_id, txn))
        if found := self._memory.get((path, requester.token)):
            return found
        if requester.device_id is None:
            return None
        return self._disk.get((room_id, requester.user_id, requester.device_id, txn))

    def remember(self, requester: Requester, room_id: str, path: str, txn: str, event_id: str) -> None:
        """Keep the outcome."""
        if self._flavour.txn_per_user:
            self._disk[(requester.user_id, requester.device_id, txn)] = event_id
            return
        self._memory[(path, requester.token)] = event_id
        if requester.device_id is not None:
            self._disk[(room_id, requester.user_id, requester.device_id, txn)] = event_id

    def restart(self) -> None:
        """Forget what only memory held."""
        self._memory.clear()
