"""Checks towards Letta: reachable, of a known kind, key accepted, agents listed to the end."""

import contextlib
from collections.abc import Callable

from ..config import Config
from ..letta.backend import Agent, Backend
from ..letta.errors import Kind, LettaError
from .checkup import Checkup, Finding, fail, ok, skip, warn
from .exitcodes import Exit

KNOWN_VERSIONS = ("0.16.",)
_NAMES = ("Letta", "Letta version", "Letta key", "agents")


def open_backend(config: Config) -> Backend:
    """The Letta of the configuration."""
    from ..letta.v1 import V1Backend  # letta-client is slow to import, and most commands need none of it

    return V1Backend(config.letta.url, config.letta.api_key, request_timeout=config.letta.request_timeout)


async def check_letta(checkup: Checkup, connect: Callable[[Config], Backend] = open_backend) -> list[Finding]:
    """Everything that can be asked of Letta without changing anything there."""
    async with contextlib.AsyncExitStack() as stack:
        backend = connect(checkup.config)
        stack.push_async_callback(backend.close)
        return await _check(checkup, backend)


async def _check(checkup: Checkup, backend: Backend) -> list[Finding]:
    url = checkup.config.letta.url
    letta, version, key, agents = _NAMES
    try:
        health = await backend.health()
    except LettaError as error:
        remedy = (
            f"check letta.url and that Letta's V1 server runs: curl {url}/v1/health/ (the newer App Server, "
            f"'letta' "
            "0.32 and later, has no such address and is not supported yet)"
        )
        found = fail(letta, Exit.LETTA, f"{url} does not answer as Letta ({error.detail})", remedy)
        return [found, *(skip(name, "Letta does not answer") for name in _NAMES[1:])]
    findings = [ok(letta, f"{url} answers"), _version(version, health.version)]
    try:
        listing = await backend.list_agents()
    except LettaError as error:
        if error.kind is Kind.BAD_KEY:
            remedy = "put the server's password or API key into letta.api_key"
            text = "Letta does not accept the key" if checkup.config.letta.api_key else "Letta asks for a key"
            return [*findings, fail(key, Exit.LETTA_AUTH, text, remedy), skip(agents, "the key is not accepted")]
        remedy = f"see Letta's log; try: curl {url}/v1/agents/"
        return [*findings, fail(agents, Exit.LETTA_AGENTS, f"cannot be listed ({error.detail})", remedy)]
    accepted = ok(key, "accepted" if checkup.config.letta.api_key else "none is needed")
    return [*findings, accepted, _agents(checkup.config, listing.agents, listing.complete, checkup.known_agents)]


def _version(name: str, version: str) -> Finding:
    if version.startswith(KNOWN_VERSIONS):
        return ok(name, version)
    return warn(name, f"{version} has not been tried with this bridge", "0.16.8 is the version it is tested with")


def _none(name: str, known: int) -> Finding:
    if known:
        remedy = (
            "look whether letta.url leads to the right Letta, and at Letta's database, before you make agents; 'guard' "
            "shows what the bridge asks about that"
        )
        return warn(name, f"Letta lists none, and the bridge's database knows {known}", remedy)
    remedy = (
        "if there should be some, look at letta.url and at Letta's database; else create one in Letta or, once the "
        "bridge runs, with the command 'summon': it appears within letta.poll_interval seconds"
    )
    return warn(name, "Letta lists none", remedy)


def _agents(config: Config, agents: tuple[Agent, ...], complete: bool, known: int) -> Finding:
    name = _NAMES[3]
    if not complete:
        remedy = "see Letta's log; the bridge removes nothing on such evidence, but cannot see every agent"
        return fail(name, Exit.LETTA_AGENTS, f"the list broke off after {len(agents)} agents", remedy)
    own = [agent for agent in agents if not agent.companion]
    wanted = sum(config.letta.wants(agent.id, agent.name, agent.tags) for agent in own)
    text = f"{len(own)} in Letta, {wanted} of them become Matrix users"
    if own and not wanted:
        return warn(name, text, "letta.include and letta.exclude leave none; change them")
    if not own:
        return _none(name, known)
    return ok(name, text)
