"""Routes about users and the server: registration, devices, profiles, media, aliases, account data, ping."""

import secrets
from typing import Any

from aiohttp import web

from . import membership
from .client_api import Call, Route
from .errors import MatrixError, bad, forbidden, not_found
from .events import JSON

_VERSIONS = [f"v1.{minor}" for minor in range(1, 16)]


async def versions(call: Call) -> JSON:
    """GET /versions."""
    return {"versions": _VERSIONS, "unstable_features": {"fi.mau.msc2659.stable": True}}


async def capabilities(call: Call) -> JSON:
    """GET /capabilities."""
    available = {"11": "stable", "12": "stable"}
    rooms = {"default": call.hs.flavour.default_room_version, "available": available}
    return {"capabilities": {"m.room_versions": rooms, "m.change_password": {"enabled": True}}}


async def register(call: Call) -> JSON:
    """POST /register: appservices only."""
    body = await call.body()
    token = call.http.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    token = token or call.http.query.get("access_token", "")
    if body.get("type") != "m.login.application_service":
        if token:
            raise bad("An access token should not be provided on requests to /register")
        raise forbidden("Registration has been disabled")
    if token != call.hs.appservice.as_token:
        raise MatrixError(401, "M_UNKNOWN_TOKEN", "Unrecognised access token", soft_logout=False)
    user_id = call.hs.accounts.register_ghost(body)
    return {"user_id": user_id, "home_server": call.hs.domain}


async def whoami(call: Call) -> JSON:
    """GET /account/whoami."""
    device = {"device_id": call.who.device_id} if call.who.device_id else {}
    return {"user_id": call.who.user_id, "is_guest": False, **device}


async def put_device(call: Call) -> tuple[int, JSON]:
    """PUT /devices/{id}."""
    return call.hs.accounts.put_device(call.who, call.path("device"), await call.body()), {}


async def get_devices(call: Call) -> JSON:
    """GET /devices."""
    return {"devices": call.hs.accounts.devices(call.who.user_id)}


async def get_device(call: Call) -> JSON:
    """GET /devices/{id}."""
    for device in call.hs.accounts.devices(call.who.user_id):
        if device["device_id"] == call.path("device"):
            return device
    raise not_found("Not found")


async def delete_device(call: Call) -> JSON:
    """DELETE /devices/{id}."""
    call.hs.accounts.delete_device(call.who, call.path("device"))
    return {}


async def deactivate(call: Call) -> JSON:
    """POST /account/deactivate: Synapse lets the appservice do it, everybody else has to enter a password."""
    await call.body()
    call.hs.accounts.deactivate(call.who)
    for room in [room for room in call.hs.rooms.values() if room.membership(call.who.user_id) in ("join", "invite")]:
        membership.leave(call.hs, call.who, room.room_id)
    return {"id_server_unbind_result": "success"}


async def get_profile(call: Call) -> JSON:
    """GET /profile/{user}."""
    profile = call.hs.accounts.profile(call.path("user"))
    if not profile and call.hs.flavour.name == "synapse":
        raise not_found("Profile was not found")
    return dict(profile)


async def get_profile_field(call: Call) -> JSON:
    """GET /profile/{user}/{field}."""
    profile, name = call.hs.accounts.profile(call.path("user")), call.path("field")
    if name not in profile:
        if name in ("displayname", "avatar_url") and call.hs.flavour.name == "synapse":
            return {}
        raise not_found("Profile was not found")
    return {name: profile[name]}


async def put_profile_field(call: Call) -> JSON:
    """PUT /profile/{user}/{field}: member events follow in every joined room when name or avatar changed."""
    user, name, body = call.path("user"), call.path("field"), await call.body()
    if name not in body:
        raise bad(f"Missing key '{name}'", "M_MISSING_PARAM")
    if body[name] is None and name in ("displayname", "avatar_url"):
        raise bad(f"'{name}' must be a string", "M_INVALID_PARAM")
    if call.hs.accounts.set_profile(call.who, user, name, body[name]):
        call.hs.profile_changed(user)
    return {}


async def delete_profile_field(call: Call) -> JSON:
    """DELETE /profile/{user}/{field}."""
    user = call.path("user")
    if call.hs.accounts.set_profile(call.who, user, call.path("field"), None):
        call.hs.profile_changed(user)
    return {}


async def get_account_data(call: Call) -> JSON:
    """GET account data, global or of a room."""
    data = call.hs.accounts.account_data(call.who, call.path("user"))
    key = (call.http.match_info.get("room"), call.path("type"))
    if key not in data:
        raise not_found("Account data not found")
    return data[key]


async def put_account_data(call: Call) -> JSON:
    """PUT account data, global or of a room."""
    data = call.hs.accounts.account_data(call.who, call.path("user"))
    data[(call.http.match_info.get("room"), call.path("type"))] = await call.body()
    return {}


async def ping(call: Call) -> JSON:
    """POST /appservice/{id}/ping: calls the appservice back; a success makes the pusher retry at once."""
    if not call.who.appservice:
        raise forbidden("Only application services can use the /appservice/ping endpoint")
    if call.path("id") != call.hs.appservice.id:
        raise forbidden("Mismatching application service ID in path")
    body = await call.body(optional=True)
    return {"duration_ms": await call.api.pusher.ping(body.get("transaction_id"))}


# ---- aliases


async def get_alias(call: Call) -> JSON:
    """GET /directory/room/{alias}: the appservice is asked for unknown aliases of its namespace."""
    alias = call.path("alias")
    if not alias.startswith("#") or ":" not in alias:
        raise bad("Room alias invalid", "M_INVALID_PARAM")
    if alias not in call.hs.aliases and call.hs.appservice.owns_alias(alias):
        await call.api.pusher.ask("rooms", alias)
    if alias not in call.hs.aliases:
        raise not_found(f"Room alias {alias} not found")
    return {"room_id": call.hs.aliases[alias][0], "servers": [call.hs.domain]}


async def put_alias(call: Call) -> JSON:
    """PUT /directory/room/{alias}."""
    body = await call.body()
    if not isinstance(body.get("room_id"), str):
        raise bad("room_id: Field required", "M_MISSING_PARAM")
    call.hs.put_alias(call.who, call.path("alias"), body["room_id"])
    return {}


async def delete_alias(call: Call) -> JSON:
    """DELETE /directory/room/{alias}."""
    call.hs.delete_alias(call.who, call.path("alias"))
    return {}


# ---- media


async def media_config(call: Call) -> JSON:
    """GET media config."""
    return {"m.upload.size": call.hs.flavour.upload_limit}


async def legacy(call: Call) -> Any:
    """The unauthenticated media endpoints: Tuwunel refuses them, Synapse hides media uploaded nowadays."""
    if not call.hs.flavour.legacy_media:
        raise forbidden("Legacy media endpoints are disabled")
    if call.http.path.endswith("/config"):
        call.api.hs.accounts.identify(_token(call), None, None)
        return await media_config(call)
    raise not_found("Not found")


def _token(call: Call) -> str:
    header = call.http.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    return header or call.http.query.get("access_token", "")


async def upload(call: Call) -> JSON:
    """POST /media/v3/upload."""
    data = await call.http.read()
    if len(data) > call.hs.flavour.upload_limit:
        raise MatrixError(413, "M_TOO_LARGE", "Upload request body is too large")
    media_id = secrets.token_urlsafe(18).replace("-", "x").replace("_", "y")
    kind = call.http.headers.get("Content-Type", "application/octet-stream")
    call.api.media[media_id] = (data, kind, call.http.query.get("filename"))
    return {"content_uri": f"mxc://{call.hs.domain}/{media_id}"}


async def download(call: Call) -> web.Response:
    """GET /client/v1/media/download/{server}/{id}."""
    found = call.api.media.get(call.path("media"))
    if found is None or call.path("server") != call.hs.domain:
        raise not_found(f"Not found '{call.http.path}'")
    data, kind, name = found
    disposition = f'inline; filename="{name}"' if name else "inline"
    return web.Response(body=data, headers={"Content-Type": kind, "Content-Disposition": disposition})


_V3 = "/client/{api:v3|r0}"

ROUTES = [
    Route("GET", "/client/versions", versions, public=True),
    Route("GET", _V3 + "/capabilities", capabilities),
    Route("POST", _V3 + "/register", register, public=True),
    Route("GET", _V3 + "/account/whoami", whoami),
    Route("POST", _V3 + "/account/deactivate", deactivate),
    Route("GET", _V3 + "/devices", get_devices),
    Route("GET", _V3 + "/devices/{device}", get_device),
    Route("PUT", _V3 + "/devices/{device}", put_device),
    Route("DELETE", _V3 + "/devices/{device}", delete_device),
    Route("GET", _V3 + "/profile/{user}", get_profile, public=True),
    Route("GET", _V3 + "/profile/{user}/{field}", get_profile_field, public=True),
    Route("PUT", _V3 + "/profile/{user}/{field}", put_profile_field),
    Route("DELETE", _V3 + "/profile/{user}/{field}", delete_profile_field),
    Route("GET", _V3 + "/user/{user}/account_data/{type}", get_account_data),
    Route("PUT", _V3 + "/user/{user}/account_data/{type}", put_account_data),
    Route("GET", _V3 + "/user/{user}/rooms/{room}/account_data/{type}", get_account_data),
    Route("PUT", _V3 + "/user/{user}/rooms/{room}/account_data/{type}", put_account_data),
    Route("POST", "/client/v1/appservice/{id}/ping", ping),
    Route("GET", _V3 + "/directory/room/{alias}", get_alias, public=True),
    Route("PUT", _V3 + "/directory/room/{alias}", put_alias),
    Route("DELETE", _V3 + "/directory/room/{alias}", delete_alias),
    Route("GET", "/client/v1/media/config", media_config),
    Route("GET", "/client/v1/media/download/{server}/{media}", download),
    Route("GET", "/client/v1/media/download/{server}/{media}/{name}", download),
    Route("POST", "/media/{api:v3|r0}/upload", upload),
    Route("GET", "/media/{api:v3|r0}/config", legacy, public=True),
    Route("GET", "/media/{api:v3|r0}/{kind:download|thumbnail}/{rest:.+}", legacy, public=True),
]
