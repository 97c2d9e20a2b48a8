"""What is made for one agent, step by step; each step is written down in a commit of its own when it is true.

A new agent takes eight requests: register, name, device, picture, avatar, portal, join, place in the space.
"""

import logging
from collections.abc import Callable

from ..db.agents import AgentRow
from ..ids import AgentID, RoomID
from ..matrix.homeserver import Homeserver, HomeserverError, Intent
from .avatar import AvatarError, Avatars, Picture, is_mxc
from .bot import Devices
from .names import shown_name, shown_topic
from .people import People
from .portal import Portals
from .rests import Rests
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

    def puppet_ready(self, row: AgentRow) -> bool:
        """Whether the puppet can act and be seen: registered, named, with its device."""
        return row.registered and row.shown_name is not None and (row.device_made or not self._devices.possible)

    def done(self, row: AgentRow, space: RoomID | None) -> bool:
        """Whether nothing is to be asked of the homeserver, nor written, for this agent."""
        name = shown_name(row.name, row.agent_id)
        return (
            self.puppet_ready(row)
            and row.shown_name == name
            and not self._avatar_due(row)
            and row.portal_room is not None
            and row.portal_joined
            and row.portal_name == name
            and row.portal_topic == shown_topic(row.description)
            and (space is None or row.in_space == space)
            and self._people.settled(row.portal_room)
            and row.state != "new"
            and not row.error
        )

    async def everything(self, row: AgentRow, writer: Writer, space: RoomID | None) -> AgentRow:
        """All steps that are still to be made."""
        row = await self.puppet(row, writer)
        row = await self._avatar(row, writer)
        fresh = parent_told = False
        if row.portal_room is None:
            row, parent_told = await self._portals.open(row, writer, space)
            fresh = True
        if not row.portal_joined:
            row = await self._portals.join(row, writer)
        row = await self._portals.dress(row, writer)
        if space is not None and row.in_space != space:
            row = await self._portals.place(row, writer, space, parent_told=parent_told)
        assert row.portal_room is not None
        if not self._people.settled(row.portal_room):
            await self._people.settle(row.portal_room, writer, verify=not fresh)
        if row.state == "new" or row.error:
            row = await writer.save(row, state="active", error="")
        return row

    async def puppet(self, row: AgentRow, writer: Writer) -> AgentRow:
        """The user: registered, named, with its device."""
        intent = self._homeserver.intent(row.mxid, row.device_id if row.device_made else None)
        if not row.registered:
            await intent.register()
            row = await writer.save(row, registered=True)
        name = shown_name(row.name, row.agent_id)
        if row.shown_name != name:
            await intent.set_displayname(name)
            row = await writer.save(row, shown_name=name)
        if not row.device_made and await self._devices.make(intent, row.device_id):
            row = await writer.save(row, device_made=True)
        return row

    async def lost_device(self, row: AgentRow, writer: Writer) -> AgentRow:
        """The homeserver does not know the puppet's device any more: it is made anew the next time."""
        self._homeserver.intent(row.mxid).forget_device()
        return await writer.save(row, device_made=False)

    # -- the picture: its trouble never holds up the rest

    def _avatar_due(self, row: AgentRow) -> bool:
        return row.shown_avatar != row.avatar and not self._avatar_rests.resting((row.agent_id, row.avatar))

    async def _avatar(self, row: AgentRow, writer: Writer) -> AgentRow:
        if not self._avatar_due(row):
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
