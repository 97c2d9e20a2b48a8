"""What the server's own admins do to rooms, over the heads of everybody in them."""

from typing import TYPE_CHECKING

from .accounts import Requester

if TYPE_CHECKING:
    from .homeserver import Homeserver


def purge_room(hs: "Homeserver", room_id: str, told: bool = True) -> None:
    """Delete a room for good, as Synapse's ``DELETE /_synapse/admin/v2/rooms`` and Tuwunel's ``rooms delete`` do.

    First every local user who is in it or invited leaves, as if of their own accord. Then its aliases lead nowhere,
    and the room is like one that never was. Raises KeyError when there is no such room.

    Both read what they push by its id, while the room is being deleted, so nothing promises that the appservice hears
    of the departures; Synapse 1.163 usually pushes them. ``told`` says whether it does here; as Tuwunel, which reads
    when it sends, this never does.
    """
    room = hs.rooms[room_id]
    pusher = hs.pusher
    if not told:
        hs.pusher = None
    for membership in ("join", "invite", "knock"):
        for user_id in room.members(membership):
            if user_id.endswith(f":{hs.domain}"):
                hs.append(room, Requester(user_id), "m.room.member", {"membership": "leave"}, state_key=user_id)
    hs.pusher = pusher
    for timer in room.typing.values():
        timer.cancel()
    room.typing.clear()
    for alias in [alias for alias, (target, _) in hs.aliases.items() if target == room_id]:
        del hs.aliases[alias]
    for event in room.timeline:
        hs.events.pop(event.event_id, None)
    del hs.rooms[room_id]
    hs.notify()
