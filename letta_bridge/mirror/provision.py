"""What is made true for one agent, step by step; each step is written down in a commit of its own when it is true.

A new agent takes eight requests: register, name, device, picture, avatar, portal, join, place in the space. One that
Letta does not list any more is only changed as far as it exists.
"""

import logging
from collections.abc import Callable

from ..db.agents import AgentRow
from ..db.rooms import doubt
from ..ids import AgentID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError, Intent
from .avatar import AvatarError, Avatars, Picture, is_mxc
from .bot import Devices
from .people import People
from .portal import Portals, SpaceRefusedError
from .rests import Rests
from .target import Target, target_of
from .trouble import unreachable
from .writer import Writer

log = logging.getLogger(__name__)

_AVATAR_PAUSE = 900.0


class Provisioner:
    """Brings one agent at a time from what its row says to what it should be.

    Methods return the row as it is then, and raise HomeserverError or MirrorError with every finished step written.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        devices: Devices,
        avatars: Avatars,
        portals: Portals,
        people: People,
        clock: Callable[[], float],
    ) -> None:
        self._homeserver = homeserver
        self._devices = devices
        self._avatars = avatars
        self._portals = portals
        self._people = people
        self._avatar_rests: Rests[tuple[AgentID, str]] = Rests(_AVATAR_PAUSE, 86400.0, clock)
        self._space_rests: Rests[RoomID] = Rests(30.0, 3600.0, clock)

    def puppet_ready(self, row: AgentRow) -> bool:
        """Whether the puppet can act and be seen: registered, named, with its device."""
        return row.registered and row.shown_name is not None and (row.device_made or not self._devices.possible)

    def done(self, row: AgentRow, space: RoomID | None) -> bool:
        """Whether nothing is to be asked of the homeserver, nor written, for this agent."""
        target = target_of(row)
        if row.state == "new" or row.error:
            return False
        return self._puppet_done(row, target) and self._portal_done(row, target, space)

    def _puppet_done(self, row: AgentRow, target: Target) -> bool:
        if not target.made and not row.registered:
            return True
        return (
            row.shown_name == target.name
            and (row.device_made or not self._devices.possible or not target.made)
            and not self._avatar_due(row, target)
        )

    def _portal_done(self, row: AgentRow, target: Target, space: RoomID | None) -> bool:
        if row.portal_room is None:
            return not target.made
        return (
            (row.portal_joined or not target.made)
            and row.portal_name == target.portal_name
            and row.portal_topic == target.portal_topic
            and row.portal_bridge == target.bridge
            and not self._misplaced(row, target, space)
            and (not target.made or self._people.settled(row.portal_room))
        )

    def _misplaced(self, row: AgentRow, target: Target, space: RoomID | None) -> bool:
        """Whether the portal's place in the space is to be changed, and can be."""
        wanted = space if target.listed else ""
        return space is not None and row.in_space != wanted and not self._space_rests.resting(space)

    async def everything(self, row: AgentRow, writer: Writer, space: RoomID | None) -> AgentRow:
        """All steps that are still to be made."""
        target = target_of(row)
        if target.made or row.registered:
            row = await self.puppet(row, writer)
            row = await self.picture(row, writer)
        fresh = parent_told = False
        if row.portal_room is None and target.made:
            row, parent_told = await self._portals.open(row, writer, space)
            fresh = True
            if row.dismissed:  # the portal that was found again says so
                target = target_of(row)
                row = await self.puppet(row, writer)
        if (room_id := row.portal_room) is not None:
            try:
                row = await self._portal(row, target, writer, space, fresh, parent_told)
            except HomeserverError as error:
                if error.forbidden and not row.error:  # the look finds out why, and says it
                    await writer.run(lambda conn: doubt(conn, room_id))
                raise
        if row.error or row.state == "new":
            row = await writer.all_made(row)
        return row

    async def _portal(
        self, row: AgentRow, target: Target, writer: Writer, space: RoomID | None, fresh: bool, parent_told: bool
    ) -> AgentRow:
        room_id = row.portal_room
        assert room_id is not None
        if not row.portal_joined and target.made:
            row = await self._portals.join(row, writer)
        row = await self._portals.dress(row, writer)
        if space is not None:
            row = await self.place(row, writer, space, parent_told=parent_told)
        if target.made and not self._people.settled(room_id):
            await self._people.settle(room_id, writer, verify=not fresh)
        return row

    async def place(self, row: AgentRow, writer: Writer, space: RoomID, *, parent_told: bool = False) -> AgentRow:
        """Into the space or out of it. A space that refuses is looked at, and holds up no agent."""
        target = target_of(row)
        if not self._misplaced(row, target, space):
            return row
        try:
            if target.listed:
                row = await self._portals.place(row, writer, space, parent_told=parent_told)
            else:
                row = await self._portals.displace(row, writer, space)
            self._space_rests.recovered(space)
            return row
        except SpaceRefusedError as error:
            pause = self._space_rests.failed(space)
            log.warning(
                "the space refuses a change, going on without",
                extra={"action": "space_refused", "room": space, "error": str(error), "retry_in": pause},
            )
            await writer.run(lambda conn: doubt(conn, space))
            return row

    async def puppet(self, row: AgentRow, writer: Writer) -> AgentRow:
        """The user: registered, named, with its device."""
        target = target_of(row)
        intent = self._homeserver.intent(row.mxid, row.device_id if row.device_made else None)
        if not row.registered:
            await intent.register()
            row = await writer.save(row, registered=True)
        if row.shown_name != target.name:
            if target.name:
                await intent.set_displayname(target.name)
                row = await writer.save(row, shown_name=target.name)
            else:
                await intent.clear_profile()
                row = await writer.save(row, shown_name="", shown_avatar=None)
        if not row.device_made and target.made and await self._devices.make(intent, row.device_id):
            row = await writer.save(row, device_made=True)
        return row

    async def lost_device(self, row: AgentRow, writer: Writer) -> AgentRow:
        """The homeserver does not know the puppet's device any more: it is made anew the next time."""
        self._homeserver.intent(row.mxid).forget_device()
        return await writer.save(row, device_made=False)

    # -- the picture: its trouble never holds up the rest

    def _avatar_due(self, row: AgentRow, target: Target) -> bool:
        if not target.name:  # none is shown: it was cleared with the name
            return False
        return row.shown_avatar != row.avatar and not self._avatar_rests.resting((row.agent_id, row.avatar))

    async def picture(self, row: AgentRow, writer: Writer) -> AgentRow:
        """The picture alone. A named one that cannot be had is no error; the generated one is shown instead."""
        if not self._avatar_due(row, target_of(row)):
            return row
        try:
            return await self._show(row, self._homeserver.intent(row.mxid), writer)
        except HomeserverError as error:
            if unreachable(error) or error.unknown_device:
                raise
            self._avatar_rests.failed((row.agent_id, row.avatar))
            log.warning(
                "the homeserver did not take a picture",
                extra={"action": "avatar_refused", "agent": row.agent_id, "error": str(error)},
            )
            return row

    async def _show(self, row: AgentRow, intent: Intent, writer: Writer) -> AgentRow:
        """Show what the metadata name. ``avatar_mxc`` is what was uploaded for this very source."""
        source = row.avatar
        if is_mxc(source):
            mxc = source
        elif row.avatar_mxc:
            mxc = row.avatar_mxc
        else:
            try:
                mxc = await _upload(intent, await self._avatars.get(row.agent_id, source))
            except AvatarError as error:
                return await self._fall_back(row, intent, writer, error)
            row = await writer.save(row, avatar_mxc=mxc)
        await intent.set_avatar(mxc)
        return await writer.save(row, shown_avatar=source)

    async def _fall_back(self, row: AgentRow, intent: Intent, writer: Writer, error: AvatarError) -> AgentRow:
        """Show the generated picture instead, and try the named one again much later."""
        if self._avatar_rests.failed((row.agent_id, row.avatar)) == _AVATAR_PAUSE:  # said the first time only
            log.warning(
                "the avatar an agent names cannot be used",
                extra={"action": "avatar_unusable", "agent": row.agent_id, "error": str(error)},
            )
        if row.shown_avatar == "":
            return row
        await intent.set_avatar(await _upload(intent, await self._avatars.generated(row.agent_id)))
        return await writer.save(row, shown_avatar="")


async def _upload(intent: Intent, picture: Picture) -> str:
    uri = await intent.upload(picture.data, picture.content_type, "avatar")
    if not is_mxc(uri):
        raise HomeserverError(500, "", "an upload was answered without a content_uri")
    return uri
