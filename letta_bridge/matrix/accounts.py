"""Calls about the account of the user who makes them: registration, devices, profile, media."""

from typing import Any

from mautrix.api import HTTPAPI, MediaPath, Method, Path

from ..ids import MXID
from .answers import HomeserverError, mapping
from .caller import Caller


class AccountCalls(Caller):
    """What one of the appservice's users does with its own account."""

    async def register(self) -> None:
        """Make this user exist (``m.login.application_service``); no error when it does already."""
        body = {
            "type": "m.login.application_service",
            "username": self.mxid[1:].partition(":")[0],
            "inhibit_login": True,  # MSC4190: no device is made, and Tuwunel refuses without
        }
        api = HTTPAPI(self._api.base_url, self._api.token, client_session=self._api.session, log=self._api.log)
        try:
            await Caller(self.mxid, api).patiently(Method.POST, Path.v3.register, body)
        except HomeserverError as error:
            if error.errcode != "M_USER_IN_USE":
                raise

    async def make_device(self, device_id: str, name: str) -> None:
        """Create or update a device without login (MSC4190)."""
        self.forget_device()
        await self.patiently(Method.PUT, Path.v3.devices[device_id], {"display_name": name})
        self.use_device(device_id)

    async def set_displayname(self, name: str) -> None:
        """Show ``name`` everywhere."""
        await self.patiently(Method.PUT, Path.v3.profile[self.mxid].displayname, {"displayname": name})

    async def set_avatar(self, mxc: str) -> None:
        """Show the picture ``mxc`` everywhere; ``""`` shows none."""
        await self.patiently(Method.PUT, Path.v3.profile[self.mxid].avatar_url, {"avatar_url": mxc})

    async def upload(self, data: bytes, content_type: str, name: str) -> str:
        """Upload media; returns its ``mxc://`` URI."""
        headers = {"Content-Type": content_type}
        answer = await self.patiently(Method.POST, MediaPath.v3.upload, data, headers, {"filename": name})
        return str(answer.get("content_uri", ""))

    async def profile(self, mxid: MXID) -> dict[str, Any] | None:
        """What ``mxid`` shows; None when the homeserver says for certain that nothing is shown.

        That is no proof that there is no such user: Synapse 1.163 says 404 M_NOT_FOUND of one whose profile is empty,
        and 404 M_UNKNOWN of one who was never registered.
        """
        try:
            answer = await self.patiently(Method.GET, Path.v3.profile[mxid])
        except HomeserverError as error:
            if error.not_found or (error.status, error.errcode) == (404, "M_UNKNOWN"):
                return None
            raise
        return mapping(answer)

    async def clear_profile(self) -> None:
        """Show neither a name nor a picture. Both homeservers take an empty text for that."""
        await self.set_displayname("")
        await self.set_avatar("")

    async def deactivate(self) -> bool:
        """End this user's account for good, as far as an application service may; whether it is ended.

        Synapse does it. Tuwunel wants a password, which puppets have none of: that is False, as is every other
        definite refusal. Rooms are left some time after the answer.
        """
        try:
            await self.patiently(Method.POST, Path.v3.account.deactivate, {"erase": False})
        except HomeserverError as error:
            if error.errcode == "M_USER_DEACTIVATED":
                return True
            if error.passing and not _wants_password(error):
                raise
            return False
        return True


def _wants_password(error: HomeserverError) -> bool:
    """User-interactive authentication answers 401 without an error code, but with the ways to go on."""
    return error.status == 401 and not error.errcode and '"flows"' in error.message
