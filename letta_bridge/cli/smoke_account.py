"""Steps of ``letta-bridge smoke`` before there is a room: the homeserver, the tokens, the ping, the test's user."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

from ..ids import MXID
from ..matrix.homeserver import HomeserverError
from ..mirror.bot import DEVICE_NAME
from .checks_homeserver import REGISTERED, ask_ping, check_namespaces, check_token, check_versions, judge_ping
from .checkup import Answer, ask
from .exitcodes import Exit
from .smoke_report import FailedError, SkippedError
from .smoke_run import STEP_SECONDS, Run, Step, settle

_PING_SECONDS = 12.0
_WHOAMI = "/client/v3/account/whoami"
NAME = "Letta Bridge smoke test"


async def _homeserver(run: Run) -> str:
    told = settle(await check_versions(run.checkup))
    run.report.software = await software(run.checkup.session, run.homeserver.url)
    return f"{told}; it is {run.report.software or 'of a kind that does not tell its name'}"


async def software(session: aiohttp.ClientSession, url: str) -> str:
    """Name and version of the homeserver, as far as it tells them; ``""`` otherwise.

    The federation API has them, which may be on another port; Tuwunel and Synapse tell them elsewhere too.
    """
    federation = await ask(session, "GET", f"{url}/_matrix/federation/v1/version", seconds=3)
    tuwunel = federation
    if not _mapping(federation.body).get("server"):
        tuwunel = await ask(session, "GET", f"{url}/_tuwunel/server_version", seconds=3)
    for found in (_mapping(_mapping(federation.body).get("server")), _mapping(tuwunel.body)):
        if isinstance(found.get("name"), str):
            return f"{found['name']} {found.get('version', '')}".strip()[:100]
    try:
        timeout = aiohttp.ClientTimeout(total=3)
        async with session.get(f"{url}/_matrix/client/versions", timeout=timeout) as answer:
            header = answer.headers.get("Server", "")
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    return header.partition(" ")[0].replace("/", " ")[:100] if header.startswith("Synapse/") else ""


async def _token(run: Run) -> str:
    return settle(await check_token(run.checkup))


async def _namespaces(run: Run) -> str:
    """Which users the bridge may act as, and how others are refused."""
    stranger = MXID(f"@somebody-else-{run.tag}:{run.homeserver.domain}")
    answer = await run.probe("GET", _WHOAMI, stranger)
    topic = "acting as a user outside the namespaces"
    run.report.observe(topic, code_of(answer), synapse="403 M_FORBIDDEN", tuwunel="400 M_EXCLUSIVE")
    answer = await run.probe("GET", _WHOAMI, run.user)
    topic = "acting as a user that is not registered"
    run.report.observe(topic, code_of(answer), synapse="403 M_FORBIDDEN", tuwunel="200")
    return settle(await check_namespaces(run.checkup))


async def _bot(run: Run) -> str:
    await run.bot.register()
    return f"{run.bot.mxid} is registered"


async def _ping(run: Run) -> str:
    if run.listener is None and not run.checkup.running:
        raise SkippedError("nobody of ours listens")
    answer = await ask_ping(run.checkup, _PING_SECONDS)
    whom = "" if run.listener else "; it was the running bridge that answered"
    return settle([judge_ping(run.checkup, answer, run.listener)]) + whom


async def _user(run: Run) -> str:
    try:
        await run.puppet.register()
    except HomeserverError as error:
        if error.errcode != "M_EXCLUSIVE":
            raise
        text = f"the homeserver does not let the bridge register {run.user} ({error.message})"
        raise FailedError(text, REGISTERED, Exit.NAMESPACES) from None
    run.registered = True
    shown = _mapping((await run.probe("GET", _profile(run))).body).get("displayname")
    seen = "none" if shown is None else str(shown).replace(run.localpart, "its local part")
    topic = "the name of a new user"
    run.report.observe(topic, seen, synapse="its local part", tuwunel="its local part 💕")
    return run.user


async def _name(run: Run) -> str:
    await run.puppet.set_displayname(NAME)
    shown = _mapping((await run.probe("GET", _profile(run))).body).get("displayname")
    if shown != NAME:
        text = f"the profile says {shown!r} after the name was set to {NAME!r}"
        raise FailedError(text, "agents will be shown under wrong names; see the homeserver's log")
    return repr(NAME)


def _profile(run: Run) -> str:
    return f"/client/v3/profile/{quote(run.user, safe='')}"


async def _device(run: Run) -> str:
    unknown = await run.probe("GET", _WHOAMI, run.user, params={"device_id": f"NONE{run.tag.upper()}"})
    topic = "naming a device that does not exist"
    run.report.observe(topic, code_of(unknown), synapse="400 M_UNKNOWN_DEVICE", tuwunel="400 M_INVALID_PARAM")
    try:
        await run.puppet.make_device(run.device_id, DEVICE_NAME)
    except HomeserverError as error:
        if error.status != 404:
            raise
        why = f"the homeserver makes no devices for the bridge ({error.errcode}), which goes on without"
        remedy = "io.element.msc4190: true in the registration (device_management = true in tuwunel.toml) allows it"
        raise SkippedError(why, remedy) from None
    run.device_made = True
    return "made without a login (MSC4190)"


def code_of(answer: Answer) -> str:
    """A refusal in short: status and error code."""
    return f"{answer.status} {answer.errcode}".strip() if answer.status else answer.trouble


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


STEPS = (
    Step("homeserver", _homeserver, (), STEP_SECONDS + 5),
    Step("as_token", _token, ("homeserver",)),
    Step("namespaces", _namespaces, ("homeserver", "as_token")),
    Step("bot", _bot, ("homeserver", "as_token", "namespaces")),
    Step("ping", _ping, ("homeserver", "as_token", "bot"), _PING_SECONDS + 3),
    Step("test user", _user, ("homeserver", "as_token", "namespaces")),
    Step("name", _name, ("test user",)),
    Step("device", _device, ("test user",)),
)
