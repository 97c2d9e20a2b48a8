"""The bridge's own user: registered, named, and with a device of its own."""

import logging
import secrets
import string

from ..db.memory import Settings
from ..matrix.homeserver import Homeserver, HomeserverError, Intent

log = logging.getLogger(__name__)

DEVICE_NAME = "letta-bridge"
_REGISTERED = "bot_registered"
_NAME = "bot_name"
_DEVICE = "bot_device"
_DEVICE_MADE = "bot_device_made"
_ALPHABET = string.ascii_uppercase + string.digits


def new_device_id() -> str:
    """A random device id; to be stored before it is used, so that no crash leaves a device nobody knows."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(10))


class Devices:
    """Makes devices without login (MSC4190), on homeservers that can."""

    def __init__(self) -> None:
        self.possible = True

    async def make(self, intent: Intent, device_id: str) -> bool:
        """Make one; False when this homeserver does not let appservices do so (noted once, not tried again by this
        process)."""
        if not self.possible:
            return False
        try:
            await intent.make_device(device_id, DEVICE_NAME)
        except HomeserverError as error:
            if error.status != 404:
                raise
            self.possible = False
            log.warning(
                "the homeserver makes no devices for the bridge, going on without: is io.element.msc4190 set to true "
                "in its copy of the registration?",
                extra={"action": "no_devices", "error": str(error)},
            )
            return False
        return True


class Bot:
    """Sees once per process that the bot is ready to act."""

    def __init__(self, homeserver: Homeserver, settings: Settings, displayname: str, devices: Devices) -> None:
        self._homeserver = homeserver
        self._settings = settings
        self._displayname = displayname
        self._devices = devices
        self._ready = False
        self._doubted = False

    async def load(self) -> None:
        """Let the bot's calls name its device, if it has one already."""
        device_id = await self._settings.get(_DEVICE)
        if device_id and await self._settings.get(_DEVICE_MADE) == device_id:
            self._homeserver.bot.use_device(device_id)

    @property
    def has_device(self) -> bool:
        """Whether the bot's calls name a device."""
        return self._homeserver.bot.has_device

    async def ready(self) -> None:
        """Register, name, device; nothing when that was done already. Raises HomeserverError."""
        if self._ready:
            return
        bot = self._homeserver.bot
        if self._doubted or await self._settings.get(_REGISTERED) != bot.mxid:
            await bot.register()
            await self._settings.set(_REGISTERED, bot.mxid)
            self._doubted = False
        if await self._settings.get(_NAME) != self._displayname:
            await bot.set_displayname(self._displayname)
            await self._settings.set(_NAME, self._displayname)
        device_id = await self._settings.get(_DEVICE)
        if not device_id:
            device_id = new_device_id()
            await self._settings.set(_DEVICE, device_id)
        if await self._settings.get(_DEVICE_MADE) != device_id and await self._devices.make(bot, device_id):
            await self._settings.set(_DEVICE_MADE, device_id)
        self._ready = True

    def doubt(self) -> None:
        """The homeserver refused something: see at the next :meth:`ready` that the bot is registered after all."""
        self._doubted = True
        self._ready = False

    async def remake_device(self) -> None:
        """Its device is not known any more: make it again at the next :meth:`ready`."""
        self._homeserver.bot.forget_device()
        await self._settings.set(_DEVICE_MADE, "")
        self._ready = False
