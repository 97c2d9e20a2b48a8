"""Checks towards the homeserver: reachable, token, namespaces, and the way back."""

import contextlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator
from typing import Protocol
from urllib.parse import quote

from aiohttp import web

from .checkup import Answer, Checkup, Finding, ask, fail, ok, skip, warn
from .exitcodes import Exit

_WHOAMI = "/_matrix/client/v3/account/whoami"
_PING_SECONDS = 45.0  # Tuwunel gives the bridge 35 seconds to answer

REGISTERED = (
    "register registration.yaml with the homeserver (letta-bridge register --show admin-room|toml|yaml "
    "prints it), "
    "and restart the homeserver if it reads files only at its start"
)


async def check_versions(checkup: Checkup) -> list[Finding]:
    """The homeserver answers."""
    url = checkup.config.homeserver.url
    answer = await ask(checkup.session, "GET", f"{url}/_matrix/client/versions")
    if answer.status == 200 and isinstance(answer.body, dict) and answer.body.get("versions"):
        return [ok("homeserver", f"{url} answers")]
    what = f"{url} does not answer" if not answer.status else f"{url} answers, but not as a Matrix homeserver"
    remedy = f"check homeserver.url and that the homeserver runs: curl {url}/_matrix/client/versions"
    checkup.failed.add("homeserver")
    return [fail("homeserver", Exit.HOMESERVER, f"{what} ({answer.error})", remedy)]


def _no_use(checkup: Checkup) -> str | None:
    """Why asking the homeserver further would tell nothing."""
    if "homeserver" in checkup.failed:
        return "the homeserver does not answer"
    return "the homeserver does not accept as_token" if "as_token" in checkup.failed else None


async def check_token(checkup: Checkup) -> list[Finding]:
    """The homeserver knows as_token, and as whose it knows it."""
    if why := _no_use(checkup):
        return [skip("as_token", why)]
    answer = await _whoami(checkup)
    bot = checkup.config.bot_mxid
    if answer.status == 401:
        checkup.failed.add("as_token")
        text = f"the homeserver does not know as_token ({answer.error})"
        return [fail("as_token", Exit.AS_TOKEN, text, REGISTERED)]
    user = answer.body.get("user_id") if answer.status == 200 and isinstance(answer.body, dict) else None
    if user == bot:
        return [ok("as_token", f"the homeserver knows it as {bot}")]
    checkup.failed.add("as_token")
    if user:
        text = f"the homeserver knows as_token as {user}, not as {bot}"
        remedy = "check homeserver.domain and appservice.bot_localpart; then " + REGISTERED
        return [fail("as_token", Exit.NAMESPACES, text, remedy)]
    return [fail("as_token", Exit.HOMESERVER, f"the homeserver cannot say whose it is ({answer.error})", "see its log")]


async def check_namespaces(checkup: Checkup) -> list[Finding]:
    """The bridge may act as agents' users, and as nobody else.

    Nothing is registered for this: a homeserver refuses a user outside the namespaces in other words than a
    user inside that does not exist (Synapse), or does not refuse the latter at all (Tuwunel).
    """
    if why := _no_use(checkup):
        return [skip("namespaces", why)]
    domain = checkup.config.homeserver.domain
    name = secrets.token_hex(8)
    puppet = f"@{checkup.config.appservice.puppet_prefix}check-{name}:{domain}"
    stranger = f"@somebody-else-{name}:{domain}"
    as_puppet, as_stranger = await _whoami(checkup, puppet), await _whoami(checkup, stranger)
    if as_stranger.status == 200 or _not_registered(as_stranger):
        text = "the homeserver lets the bridge act as any user: its namespaces are wider than the configuration's"
        return [fail("namespaces", Exit.NAMESPACES, text, REGISTERED)]
    if as_puppet.status == 200 or _not_registered(as_puppet):
        return [ok("namespaces", f"agents' users (@{checkup.config.appservice.puppet_prefix}…) belong to the bridge")]
    if _sentence(as_puppet) == _sentence(as_stranger):
        text = f"the homeserver does not let the bridge act as {puppet} ({as_puppet.error})"
        return [fail("namespaces", Exit.NAMESPACES, text, REGISTERED)]
    text = f"the homeserver's answer is unknown to this check: {as_puppet.errcode} {as_puppet.error}"
    return [warn("namespaces", text, "compare its registration with registration.yaml")]


async def _whoami(checkup: Checkup, user: str | None = None) -> Answer:
    config = checkup.config
    return await ask(
        checkup.session,
        "GET",
        config.homeserver.url + _WHOAMI,
        token=config.appservice.as_token,
        params={"user_id": user} if user else None,
    )


def _not_registered(answer: Answer) -> bool:
    return answer.status == 403 and "not registered" in answer.error


def _sentence(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer.errcode, re.sub(r"@\S+", "@", answer.error)


async def check_ping(checkup: Checkup) -> list[Finding]:
    """The homeserver reaches the bridge with the right hs_token: the running one, or a listener for this check."""
    if why := _no_use(checkup):
        return [skip("ping", why)]
    if checkup.running:
        return [judge_ping(checkup, await ask_ping(checkup), None)]
    if not checkup.port_free:
        return [skip("ping", f"port {checkup.config.appservice.port} cannot be listened on")]
    listener = _Listener(checkup.config.appservice.hs_token)
    async with listener.serve(checkup.config.appservice.host, checkup.config.appservice.port):
        return [judge_ping(checkup, await ask_ping(checkup), listener)]


class Reached(Protocol):
    """What a listener of ours saw of the homeserver's pings: one with the right token, one with another."""

    accepted: bool
    refused: bool


async def ask_ping(checkup: Checkup, seconds: float = _PING_SECONDS) -> Answer:
    """Have the homeserver ping whoever listens at the registration's url."""
    config = checkup.config
    return await ask(
        checkup.session,
        "POST",
        f"{config.homeserver.url}/_matrix/client/v1/appservice/{quote(config.appservice.id, safe='')}/ping",
        token=config.appservice.as_token,
        json={"transaction_id": f"check-{secrets.token_hex(8)}"},
        seconds=seconds,
    )


def judge_ping(checkup: Checkup, answer: Answer, listener: Reached | None) -> Finding:
    """What the answer to a ping says. ``listener`` is ours; None when the running bridge was pinged."""
    config = checkup.config.appservice
    if answer.status == 200 and (listener is None or listener.accepted):
        took = answer.body.get("duration_ms") if isinstance(answer.body, dict) else None
        return ok("ping", "the homeserver reaches the bridge" + (f" ({took} ms)" if took is not None else ""))
    if answer.status == 200:
        text = "the homeserver reached something, but not this bridge: the registration's url leads elsewhere"
        return fail("ping", Exit.PING, text, f"make appservice.url ({config.url}) lead here; then {REGISTERED}")
    if listener is not None and listener.refused:
        text = "the homeserver reaches the bridge with another hs_token than the configuration's"
        return fail("ping", Exit.REGISTRATION, text, REGISTERED)
    if not answer.status:
        text = f"the homeserver does not come to the end of a ping ({answer.error}): it seems to wait for the bridge"
        return fail("ping", Exit.PING, text, _REACH.format(url=config.url))
    text, remedy = _PING_ERRORS.get(answer.errcode, (f"the homeserver refuses to ping ({answer.error})", REGISTERED))
    return fail("ping", Exit.PING, text.format(url=config.url, error=answer.error), remedy.format(url=config.url))


_REACH = (
    "from the homeserver's machine or container {url} has to lead to the bridge: check appservice.url, host "
    "and port, "
    "firewalls and container networks; in containers use a fixed IP address, because Tuwunel remembers "
    "unknown names "
    "for days. After a change: letta-bridge register --force, and register the new file"
)
_PING_ERRORS = {
    "M_URL_NOT_SET": ("the homeserver has no url for the bridge", REGISTERED),
    "M_CONNECTION_FAILED": ("the homeserver cannot connect to the bridge ({error})", _REACH),
    "M_CONNECTION_TIMEOUT": ("the homeserver gets no answer from the bridge ({error})", _REACH),
    "M_BAD_STATUS": ("what the homeserver reaches does not answer as this bridge ({error})", _REACH),
    "M_FORBIDDEN": ("the homeserver knows as_token under another appservice id ({error})", REGISTERED),
    "M_UNRECOGNIZED": (
        "the homeserver cannot ping appservices ({error})",
        "it is too old: Synapse 1.132 or Tuwunel 1.8.3 and newer can",
    ),
}


class _Listener:
    """Answers the homeserver's ping while the bridge does not run; transactions are put off, so none is lost."""

    def __init__(self, hs_token: str) -> None:
        self._token = hs_token.encode()
        self.accepted = False
        self.refused = False

    @contextlib.asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[None]:
        """Listen while the block runs."""
        app = web.Application()
        app.router.add_post("/_matrix/app/v1/ping", self._ping)
        app.router.add_route("*", "/{rest:.*}", self._later)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            yield
        finally:
            await runner.cleanup()

    async def _ping(self, request: web.Request) -> web.Response:
        presented = [request.headers.get("Authorization", "").removeprefix("Bearer ").encode()]
        presented += [token.encode() for token in request.query.getall("access_token", [])]
        if all(hmac.compare_digest(token, self._token) for token in presented if token) and any(presented):
            self.accepted = True
            return web.json_response({})
        self.refused = True
        return web.json_response({"errcode": "M_FORBIDDEN", "error": "wrong hs_token"}, status=403)

    async def _later(self, _: web.Request) -> web.Response:
        return web.json_response({"errcode": "M_UNKNOWN", "error": "the bridge is not running"}, status=503)
