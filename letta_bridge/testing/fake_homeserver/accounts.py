"""Users, their devices, profiles and account data; and who a request acts as."""

import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from .appservice import AppService
from .auth import USER_ID
from .errors import MatrixError, PasswordNeededError, bad, forbidden, not_found
from .events import JSON
from .flavour import Flavour

_LOCALPART = re.compile(r"[a-z0-9._=/+-]+\Z")
_FIELD = re.compile(r"[a-z][a-z0-9._-]*\Z")
_MAX_NAME = 256


@dataclass(slots=True)
class User:
    """An account, or a user of another server that takes part in rooms."""

    user_id: str
    profile: JSON
    devices: dict[str, JSON] = field(default_factory=dict)
    account_data: dict[tuple[str | None, str], JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Requester:
    """Who acts: the user, the device if one is named, and whether the appservice's token was used."""

    user_id: str
    device_id: str | None = None
    appservice: bool = False
    token: str = ""


class Accounts:
    """All users of one fake homeserver."""

    def __init__(self, domain: str, appservice: AppService, flavour: Flavour) -> None:
        self.domain = domain
        self.appservice = appservice
        self.flavour = flavour
        self.users: dict[str, User] = {}
        self._tokens: dict[str, Requester] = {}
        if flavour.name == "tuwunel":  # it creates the sender when it loads the registration
            self.users[appservice.sender] = User(appservice.sender, {})

    def add_person(self, user_id: str, displayname: str | None) -> Requester:
        """Create an account outside the appservice. Raises MatrixError when the name is taken or reserved."""
        if not USER_ID.match(user_id):
            raise bad("Invalid user id", "M_INVALID_USERNAME")
        if user_id in self.users:
            raise bad("User ID already taken.", "M_USER_IN_USE")
        if user_id.endswith(f":{self.domain}") and self.appservice.reserves_user(user_id):
            raise bad("This user ID is reserved by an application service.", "M_EXCLUSIVE")
        name = displayname or user_id[1:].split(":")[0]
        device, token = secrets.token_hex(5).upper(), f"token-{secrets.token_hex(12)}"
        self.users[user_id] = User(user_id, {"displayname": name}, {device: {"display_name": None}})
        self._tokens[token] = Requester(user_id, device, token=token)
        return self._tokens[token]

    def identify(self, token: str | None, user_id: str | None, device_id: str | None) -> Requester:
        """Who a request acts as. Raises MatrixError as the homeserver refuses."""
        if not token:
            raise MatrixError(401, "M_MISSING_TOKEN", "Missing access token")
        if token != self.appservice.as_token:
            known = self._tokens.get(token)
            if known is None:
                raise MatrixError(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.", soft_logout=False)
            return known
        acting = user_id or self.appservice.sender
        if not self.appservice.owns_user(acting):
            status, errcode = self.flavour.foreign_user
            raise MatrixError(status, errcode, f"Application service cannot masquerade as this user ({acting}).")
        user = self.users.get(acting)
        if user is None and user_id and self.flavour.checks_registration:
            raise forbidden(f"Application service has not registered this user ({acting})")
        if device_id is not None and (user is None or device_id not in user.devices):
            status, errcode = self.flavour.unknown_device
            raise MatrixError(status, errcode, f"Unknown device for user {acting}.")
        return Requester(acting, device_id, appservice=True, token=token)

    def register_ghost(self, body: JSON) -> str:
        """``POST /register`` of the appservice; the new user's id. Synapse's and Tuwunel's refusals differ."""
        localpart = body.get("username")
        if not isinstance(localpart, str):
            raise bad("Desired Username is missing or not a string")
        tuwunel = self.flavour.name == "tuwunel"
        if tuwunel:
            localpart = localpart.lower()
            if not _LOCALPART.match(localpart):
                raise bad("Username contains disallowed characters.", "M_INVALID_USERNAME")
        user_id = f"@{localpart}:{self.domain}"
        no_login = self.appservice.device_management and not body.get("inhibit_login")
        if tuwunel and no_login:
            raise bad("Appservice must set inhibit_login.", "M_APPSERVICE_LOGIN_UNSUPPORTED")
        if not self.appservice.owns_user(user_id):
            raise bad("Invalid user localpart for this application service.", "M_EXCLUSIVE")
        if user_id in self.users:
            raise bad("User ID already taken.", "M_USER_IN_USE")
        self.users[user_id] = User(user_id, {"displayname": localpart + self.flavour.new_name_suffix})
        if no_login:  # Synapse refuses only now: the user exists from here on
            raise bad("The inhibit_login parameter must be set to true.", "M_APPSERVICE_LOGIN_UNSUPPORTED")
        return user_id

    def profile(self, user_id: str) -> JSON:
        """The public profile. Raises MatrixError for unknown users."""
        if not USER_ID.match(user_id):
            raise bad("Invalid user id", "M_INVALID_PARAM")
        user = self.users.get(user_id)
        if user is None:
            if not user_id.endswith(f":{self.domain}"):
                raise forbidden(f"Federation denied with {user_id.split(':', 1)[1]}.")
            errcode = "M_UNKNOWN" if self.flavour.name == "synapse" else "M_NOT_FOUND"
            raise MatrixError(404, errcode, "No row found (profiles)")
        return user.profile

    def set_profile(self, requester: Requester, user_id: str, name: str, value: Any) -> bool:
        """Change or (value None) delete a profile field; True when members events must follow."""
        profile = self._own_profile(requester, user_id, name)
        if name in ("displayname", "avatar_url") and value is not None:
            if not isinstance(value, str):
                raise bad(f"'{name}' must be a string", "M_INVALID_PARAM")
            if name == "displayname" and len(value) > _MAX_NAME:
                raise bad("Displayname is too long (max 256)")
        elif not _FIELD.match(name):
            raise bad("Field name does not follow Common Namespaced Identifier Grammar", "M_INVALID_PARAM")
        before = profile.get(name)
        if value is None or (name in ("displayname", "avatar_url") and value == ""):
            profile.pop(name, None)
        else:
            profile[name] = value
        return name in ("displayname", "avatar_url") and profile.get(name) != before

    def _own_profile(self, requester: Requester, user_id: str, name: str) -> JSON:
        if not user_id.endswith(f":{self.domain}"):
            raise bad("User is not hosted on this homeserver")
        allowed = requester.user_id == user_id or (
            self.flavour.namespace_profiles and requester.appservice and self.appservice.owns_user(user_id)
        )
        if not allowed:
            raise bad(f"Cannot set another user's {name}", "M_FORBIDDEN")
        user = self.users.get(user_id)
        if user is None:
            raise not_found("User does not exist")
        return user.profile

    def put_device(self, requester: Requester, device_id: str, body: JSON) -> int:
        """Create (201) or update (200) a device; only updating is possible without MSC4190."""
        user = self.users.get(requester.user_id)
        if user is None:
            raise bad("Unknown user.", "M_INVALID_PARAM")
        known = device_id in user.devices
        if not known and not (requester.appservice and self.appservice.device_management):
            if self.flavour.name == "synapse" and "display_name" not in body:
                return 200  # it looks for the device only when there is something to change
            raise not_found("Not found")
        device = user.devices.setdefault(device_id, {"display_name": None})
        if "display_name" in body:
            device["display_name"] = body["display_name"]
        return 200 if known else 201

    def devices(self, user_id: str) -> list[JSON]:
        """The devices of a user in the form of the API."""
        user = self.users.get(user_id)
        return [
            {"user_id": user_id, "device_id": name, "last_seen_ip": None, "last_seen_ts": None, **device}
            for name, device in (user.devices if user else {}).items()
        ]

    def delete_device(self, requester: Requester, device_id: str) -> None:
        """Delete a device. People would need to enter a password: they get the 401 of that flow."""
        if not (requester.appservice and self.appservice.device_management):
            raise PasswordNeededError
        if user := self.users.get(requester.user_id):
            user.devices.pop(device_id, None)

    def deactivate(self, requester: Requester) -> None:
        """Take the devices away. Raises MatrixError where a password would be needed; the name stays taken."""
        if not requester.appservice or self.flavour.name == "tuwunel":
            if requester.appservice and requester.device_id is None:  # Tuwunel keeps this flow's sessions by device
                raise forbidden("A device is needed for user-interactive authentication")
            raise PasswordNeededError
        if user := self.users.get(requester.user_id):
            user.devices.clear()

    def account_data(self, requester: Requester, user_id: str) -> dict[tuple[str | None, str], JSON]:
        """The account data of the requester, keyed by (room or None, type)."""
        if requester.user_id != user_id:
            raise forbidden("Cannot get account data for other users.")
        return self.users.setdefault(user_id, User(user_id, {})).account_data
