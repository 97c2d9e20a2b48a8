"""``letta-bridge run``: the bridge itself, until it is told to stop."""

import argparse
import asyncio
import errno
import gc
import logging
import socket

from .. import logs, registration
from ..config import Config, ConfigError
from .exitcodes import Exit
from .options import add_config, add_registration, complain, load_config, registration_path

log = logging.getLogger(__name__)

_NOT_TO_BE_HAD = {
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "this user may not (ports below 1024 are for root only)",
}


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "run",
        help="run the bridge",
        description="Runs the bridge until it is stopped (SIGTERM or Ctrl-C), then ends what is under way.",
    )
    add_config(parser)
    add_registration(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load_config(options)
    logs.setup(config.logging.level, config.logging.format, config.secrets())
    for warning in config.warnings:
        log.warning("configuration", extra={"action": "config_warning", "warning": warning})
    _compare_registration(config, options)
    from ..bridge import run  # not needed, and slow to import, for every other command

    gc.collect()
    gc.freeze()  # what is loaded stays: looking through it for garbage again and again would hold up the loop
    try:
        return asyncio.run(run(config))
    except OSError as error:
        where = f"{config.appservice.host}:{config.appservice.port}"
        if error.errno == errno.EADDRINUSE:
            complain(f"another program listens on {where}; stop it, or change appservice.port (and register again)")
        elif error.errno in _NOT_TO_BE_HAD or isinstance(error, socket.gaierror):
            why = _NOT_TO_BE_HAD.get(error.errno or 0, error.strerror)
            complain(f"cannot listen on {where}: {why}; change appservice.host or appservice.port")
        else:
            raise
        return Exit.PORT


def _compare_registration(config: Config, options: argparse.Namespace) -> None:
    path = registration_path(options)
    if not path.exists():
        return  # it may be kept where only the homeserver reads it
    try:
        differences = registration.compare(config, path)
    except ConfigError as error:
        differences = [str(problem) for problem in error.problems]
    for difference in differences:
        log.warning(
            "the registration file does not belong to the configuration",
            extra={"action": "registration_mismatch", "file": str(path), "difference": difference},
        )
