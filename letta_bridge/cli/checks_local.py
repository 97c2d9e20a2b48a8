"""Checks that need nobody else: configuration, registration file, file modes, port, database."""

import errno
import os
import socket
import stat
from pathlib import Path

from .. import registration
from ..config import ConfigError
from ..db.database import Database, DatabaseError, DatabaseInUseError
from .checkup import Checkup, Finding, ask, fail, ok, warn
from .exitcodes import Exit


async def check_config(checkup: Checkup) -> list[Finding]:
    """The configuration was loaded before; here are its warnings."""
    found = [warn("config", text, _remedy(text)) for text in checkup.config.warnings]
    return found or [ok("config", f"{checkup.config.path} is valid")]


def _remedy(warning: str) -> str:
    return "let only its owner read it" if "holds secrets" in warning else "change it, or keep it if it is meant"


async def check_registration(checkup: Checkup) -> list[Finding]:
    """The registration file belongs to the configuration."""
    path = checkup.registration_path
    if not path.exists():
        text = f"there is no {path}, so it cannot be compared with the configuration"
        return [warn("registration", text, "name the file with --registration, or write it: letta-bridge register")]
    try:
        differences = registration.compare(checkup.config, path)
    except ConfigError as error:
        remedy = "write it anew: letta-bridge register --force, and register it with the homeserver"
        return [fail("registration", Exit.REGISTRATION, str(error), remedy)]
    if not differences:
        return [ok("registration", f"{path} belongs to the configuration")]
    remedy = (
        "if the configuration is right: letta-bridge register --force, and give the new file to the "
        "homeserver; "
        "if the file is right: put its values into the configuration"
    )
    text = f"{path} does not belong to the configuration: " + "; ".join(differences)
    return [fail("registration", Exit.REGISTRATION, text, remedy)]


async def check_modes(checkup: Checkup) -> list[Finding]:
    """Nobody but the owner (and for the registration, its group) may read secrets."""
    path = checkup.registration_path
    if path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o007:
        text = f"{path} holds secrets and everybody may read it (mode {mode:04o})"
        return [warn("file modes", text, f"chmod o-rwx {path}")]
    return [ok("file modes", "secrets are readable for their owner only")] if not _config_open(checkup) else []


def _config_open(checkup: Checkup) -> bool:
    return any("holds secrets" in warning for warning in checkup.config.warnings)


async def check_port(checkup: Checkup) -> list[Finding]:
    """The port is free, or it is this bridge that listens there."""
    config = checkup.config.appservice
    where = f"{config.host}:{config.port}"
    answer = await ask(
        checkup.session, "POST", f"{checkup.own_url}/_matrix/app/v1/ping", token=config.hs_token, json={}, seconds=5
    )
    if answer.status == 200:
        checkup.running = True
        ready = await ask(checkup.session, "GET", f"{checkup.own_url}/_matrix/mau/ready", seconds=5)
        if ready.status == 200:
            return [ok("port", f"the bridge is running on {where} and ready")]
        return [
            warn("port", f"the bridge is running on {where}, but not ready", "the checks below and its log say why")
        ]
    trouble = _bind_trouble(config.host, config.port)
    if trouble is None:
        checkup.port_free = True
        return [ok("port", f"{where} is free (the bridge is not running)")]
    if answer.status in (401, 403) and answer.errcode:
        text = f"another appservice, or this bridge with another hs_token, listens on {where}"
        return [
            fail("port", Exit.PORT, text, "restart the bridge after changing its configuration, or change the port")
        ]
    text = f"cannot listen on {where}: {trouble}"
    remedy = "appservice.host has to be an address of this machine, and a port below 1024 is for root only"
    if trouble == os.strerror(errno.EADDRINUSE):
        remedy = f"see who listens: ss -ltnp 'sport = :{config.port}'; stop it, or change appservice.host and port"
    return [fail("port", Exit.PORT, text, remedy)]


def _bind_trouble(host: str, port: int) -> str | None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


async def check_database(checkup: Checkup) -> list[Finding]:
    """The database opens, can be written, and is not of a newer version. Its tables are brought up to date."""
    uri = checkup.config.database.uri
    if checkup.running and uri.startswith("sqlite:"):
        return [ok("database", "in use by the running bridge")]
    database = Database(uri, checkup.config.base)
    try:
        await database.open()
    except DatabaseInUseError as error:
        return [fail("database", Exit.RUNNING, str(error), "stop the other process first")]
    except DatabaseError as error:
        return [fail("database", Exit.DATABASE, str(error), _database_remedy(checkup.config.base, uri))]
    try:
        known = "SELECT COUNT(*) FROM agent WHERE state IN ('new', 'active', 'missing')"
        checkup.known_agents = int(await database.fetchval(known))
    finally:
        await database.close()
    return [ok("database", f"{database.describe()} opens and can be written")]


def _database_remedy(base: Path, uri: str) -> str:
    if uri.startswith("sqlite:"):
        return f"check that the file and its folder ({base}) belong to the user that runs the bridge"
    return "check database.uri: try it with psql; the user has to own the database or be allowed to create tables"
