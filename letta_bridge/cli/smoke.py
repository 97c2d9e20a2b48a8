"""``letta-bridge smoke``: try everything that the bridge needs of a homeserver on the live one, and say what it did."""

import argparse
import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable

import aiohttp

from ..config import Config
from ..ids import MXID
from ..matrix.homeserver import Homeserver
from . import smoke_account, smoke_room
from .checks_local import check_port
from .checkup import Checkup, Status
from .exitcodes import Exit
from .options import add_config, add_registration, load_config, registration_path
from .smoke_cleanup import clean_up
from .smoke_listener import Listener
from .smoke_probes import transactions, versions_of_rooms
from .smoke_report import Line, Report, say
from .smoke_run import STEP_SECONDS, Run, perform

_STEPS_SECONDS = 38.0  # and what is left of a minute for cleaning up
_LONGEST_WAIT = 20.0
_INTERRUPTED = 130


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "smoke",
        help="try out on the live homeserver everything that the bridge needs of it",
        description="Registers a test user, makes a room, sends, receives, and takes all of it away again, within a "
        "minute. Says what works and how this homeserver does things. While the bridge is not running it listens in "
        "its place and sees what the homeserver delivers; messages for the bridge are left for it. Beside a running "
        "bridge it leaves receiving to it. Neither the database nor Letta is touched.",
    )
    add_config(parser)
    add_registration(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long a delivery of the homeserver may take, up to 20 (default: 10)",
    )
    parser.set_defaults(run=_smoke)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= _LONGEST_WAIT:
            return value
    raise argparse.ArgumentTypeError(f"expected seconds, up to {_LONGEST_WAIT:g}, found {text!r}")


def _smoke(options: argparse.Namespace) -> int:
    config = load_config(options)
    _keep_logs_quiet()
    began = time.monotonic()
    show: Callable[[str], None] = (lambda text: None) if options.json else say
    report = Report(config.secrets(), show)
    try:
        asyncio.run(_try_out(config, options, report))
    except (KeyboardInterrupt, asyncio.CancelledError):
        report.interrupted = True
    took = time.monotonic() - began
    code = _INTERRUPTED if report.interrupted else report.code
    if options.json:
        say(report.as_json(took, code))
    else:
        report.conclude(took)
    return code


def _keep_logs_quiet() -> None:
    """What goes wrong is told in the report; the parts of the bridge that are used would log it too."""
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())


async def _try_out(config: Config, options: argparse.Namespace, report: Report) -> None:
    _end_on_sigterm()
    deadline = time.monotonic() + _STEPS_SECONDS
    bot = MXID(config.bot_mxid)
    url, token = config.homeserver.url, config.appservice.as_token
    homeserver = Homeserver(url, config.homeserver.domain, token, bot, timeout=STEP_SECONDS)
    try:
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            checkup = Checkup(config, registration_path(options), session)
            listener = await _listen(checkup, report, stack)
            run = Run(config, checkup, homeserver, report, listener, options.wait, deadline)
            try:
                await _steps(run)
            finally:
                # also when interrupted, which happens once: what follows is not disturbed by the first Ctrl-C
                await clean_up(run)
                transactions(run)
    finally:
        await homeserver.close()


def _end_on_sigterm() -> None:
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # only the main thread gets signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def _listen(checkup: Checkup, report: Report, stack: contextlib.AsyncExitStack) -> Listener | None:
    """Take the place of the bridge if nobody has it; None when the bridge runs, or nobody can listen."""
    began = time.monotonic()
    (found,) = await check_port(checkup)
    config = checkup.config.appservice
    where = f"{config.host}:{config.port}"
    text, status, remedy, code = found.text, found.status, found.remedy, found.code
    listener: Listener | None = None
    if checkup.port_free:
        listener = Listener(config, checkup.config.homeserver.domain, MXID(checkup.config.bot_mxid))
        try:
            await stack.enter_async_context(listener.listening())
            report.mode, text = "in the place of the bridge", f"listening on {where} in the place of the bridge"
        except OSError as error:
            listener = None
            text, status, code = f"cannot listen on {where}: {error.strerror or error}", Status.FAIL, Exit.PORT
            remedy = "change appservice.host or appservice.port, or stop who listens there"
    elif checkup.running:
        report.mode = "beside the running bridge"
        if status is not Status.OK:
            status, code = Status.FAIL, Exit.PING
    report.add(Line("port", status, text, round((time.monotonic() - began) * 1000), remedy, code))
    return listener


async def _steps(run: Run) -> None:
    for step in (*smoke_account.STEPS, *smoke_room.STEPS):
        await perform(run, step)
        if step.what == "bot" and step.what not in run.broken:
            await versions_of_rooms(run)
