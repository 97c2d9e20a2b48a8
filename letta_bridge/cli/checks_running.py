"""The checks of ``letta-bridge check`` that make sense in the running bridge itself: for its ``doctor``."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp

from ..config import Config
from .checks_homeserver import check_namespaces, check_ping, check_token, check_versions
from .checks_letta import check_letta
from .checks_local import check_config, check_modes, check_registration
from .checkup import Checkup, Finding, warn
from .options import REGISTRATION_NAME

_SECONDS = 8.0
"""What one check may take: people wait for all of them."""
_HOMESERVER = (check_versions, check_token, check_namespaces, check_ping)


async def examine(config: Config, known_agents: int) -> list[Mapping[str, Any]]:
    """Their findings, as ``letta-bridge check --json`` shows them. Port and database are in use by this process.

    Args:
        known_agents: how many agents the database takes for present in Letta.
    """
    folder = config.base if config.path is None else config.path.parent
    async with aiohttp.ClientSession() as session:
        checkup = Checkup(config, folder / REGISTRATION_NAME, session, running=True, known_agents=known_agents)
        local, homeserver, letta = await asyncio.gather(
            asyncio.to_thread(_local, checkup), _in_turn(checkup, _HOMESERVER), _in_turn(checkup, (check_letta,))
        )
    return [finding.as_json() for finding in (*local, *homeserver, *letta)]


def _local(checkup: Checkup) -> list[Finding]:
    """They read files, so they have a thread of their own."""
    checks = [check_config]
    if checkup.registration_path.exists():  # it may be kept where only the homeserver reads it
        checks += [check_registration, check_modes]
    return asyncio.run(_in_turn(checkup, tuple(checks)))


async def _in_turn(
    checkup: Checkup, checks: tuple[Callable[[Checkup], Awaitable[list[Finding]]], ...]
) -> list[Finding]:
    found: list[Finding] = []
    for check in checks:
        try:
            async with asyncio.timeout(_SECONDS):
                found += await check(checkup)
        except TimeoutError:
            name = check.__name__.removeprefix("check_")
            found.append(warn(name, f"no end within {_SECONDS:.0f} s", "try: letta-bridge check"))
    return found
