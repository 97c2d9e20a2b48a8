"""``letta-bridge ctl``: the commands of the management room, on the command line of the bridge's machine."""

import argparse
import asyncio
import base64
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from ..config import Config
from .exitcodes import Exit
from .options import CONFIG_NAME, complain
from .terminal import plain

_FIRST_ANSWER = 60.0
"""Seconds that a command may take if ``--timeout`` says nothing else; a job may take as long as it takes."""
Offline = Callable[[Config, list[str], Callable[[str], None]], Awaitable[dict[str, Any]]]
"""A command that works while the bridge is stopped: config, words and a place for progress; gives its reply."""


@dataclass(slots=True)
class _Request:
    """What was typed."""

    words: list[str]
    json: bool = False
    config: Path = Path(CONFIG_NAME)
    timeout: float | None = None
    cwd: str = "/"
    """The folder in which it was typed: where names of files begin."""
    job: int | None = None
    """The job that was begun by it, once that is known."""


class _NotRunningError(Exception):
    """Nobody listens."""


class _BrokenError(Exception):
    """The bridge did not answer to the end."""


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "ctl",
        help="use the commands of the management room here",
        description="Gives a command to the bridge that runs on this machine, and shows its answer. 'letta-bridge ctl "
        "help' lists the commands; docs/commands.md describes them.",
        epilog="The options may stand anywhere on the line.",
    )
    parser.add_argument("-c", "--config", type=Path, default=Path(CONFIG_NAME), metavar="FILE", help="configuration")
    parser.add_argument("--json", action="store_true", help="print the answer's data as JSON, for programs")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="seconds to wait for the end; default: 60, jobs: ever"
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND …", help="what to do")
    parser.set_defaults(run=give)


def give(options: argparse.Namespace) -> int:
    """Give ``options.words`` to the running bridge and show its answer; the exit code."""
    request = _Request([], options.json, options.config, options.timeout, os.getcwd())
    if not _take_options(request, options.words):
        return Exit.USAGE
    from ..config import load

    config = load(request.config)
    try:
        return asyncio.run(_ask(request, config))
    except KeyboardInterrupt:
        if request.job is not None:
            complain(f"job {request.job} goes on in the bridge; 'letta-bridge ctl jobs {request.job}' shows it")
        return 130


def _take_options(request: _Request, words: list[str]) -> bool:
    """Take ours out of the command's words; False when one of them has no value."""
    left = list(words)
    while left:
        word = left.pop(0)
        name, has_value, value = word.partition("=")
        if word in ("--", "--confirm") or name == "--confirm":
            request.words += [word, *left]
            return True
        if word == "--json":
            request.json = True
        elif name in ("-c", "--config", "--timeout"):
            if not has_value and not left:
                complain(f"{name} needs a value")
                return False
            value = value if has_value else left.pop(0)
            try:
                if name == "--timeout":
                    request.timeout = float(value)
                else:
                    request.config = Path(value)
            except ValueError:
                complain(f"--timeout needs a number of seconds, not {value!r}")
                return False
        else:
            request.words.append(word)
    return True


async def _ask(request: _Request, config: Config) -> int:
    offline = _offline(request.words)
    try:
        async with asyncio.timeout(request.timeout):
            if offline is not None:
                reply = await offline(config, request.words[1:], _progress)
            else:
                reply = await _through_socket(request, config)
    except _NotRunningError as error:
        complain(str(error))
        return Exit.NOT_RUNNING
    except _BrokenError as error:
        complain(str(error))
        return Exit.FAILED
    except TimeoutError:
        what = f"job {request.job}" if request.job is not None else "it may still be done; the bridge"
        complain(f"no end within {request.timeout or _FIRST_ANSWER:g} s; {what} goes on")
        return Exit.FAILED
    _show(request, reply)
    return Exit.OK if reply.get("ok", True) else Exit.FAILED


def _offline(words: list[str]) -> Offline | None:
    """What does this command in this process; None when the bridge does it."""
    if words[:1] != ["restore"] or "--help" in words:
        return None
    from .ctl_restore import restore

    return restore


async def _through_socket(request: _Request, config: Config) -> dict[str, Any]:
    from ..commands.socket import SocketError, socket_path

    try:
        path = socket_path(Path(request.cwd) / config.base, config.management.socket)
    except SocketError as error:
        raise _NotRunningError(str(error)) from error
    wait = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
    connector = aiohttp.UnixConnector(path=os.fspath(path))
    body = {"words": request.words, "json": request.json, "cwd": request.cwd}
    async with aiohttp.ClientSession(connector=connector, timeout=wait, read_bufsize=1 << 26) as session:
        try:
            async with asyncio.timeout(None if request.timeout else _FIRST_ANSWER) as first:
                async with session.post("http://bridge/v1/command", json=body) as response:
                    return await _read(request, response, first)
        except aiohttp.ClientConnectorError as error:
            raise _NotRunningError(_why_not(path, error)) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            job = f" Job {request.job} goes on when it runs again." if request.job is not None else ""
            raise _BrokenError(f"the bridge ended before it had answered ({error}).{job}") from error


async def _read(request: _Request, response: aiohttp.ClientResponse, first: asyncio.Timeout) -> dict[str, Any]:
    """The reply, after showing what comes before it."""
    if response.status != 200:
        raise _BrokenError(f"the bridge answered HTTP {response.status}; is it another version?")
    async for raw in response.content:
        line = json.loads(raw)
        if "reply" in line:
            reply: dict[str, Any] = line["reply"]
            return reply
        request.job = line.get("job", request.job)
        first.reschedule(None)
        _progress(str(line.get("progress", "")))
    job = f" Job {request.job} goes on when it runs again." if request.job is not None else ""
    raise _BrokenError(f"the bridge ended before it had answered.{job}")


def _why_not(path: Path, error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error.os_error, PermissionError):
        return f"you may not use {path}; be the user that runs the bridge"
    what = "no socket at" if isinstance(error.os_error, FileNotFoundError) else "nobody answers at the socket"
    return (
        f"the bridge is not running here ({what} {path}); start it with 'letta-bridge run', or name its "
        "configuration with --config"
    )


def _progress(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


def _show(request: _Request, reply: dict[str, Any]) -> None:
    if file := reply.get("file"):
        if reply.get("text"):
            print(plain(reply["text"]), file=sys.stderr)
        sys.stdout.buffer.write(base64.b64decode(file["base64"]))
        sys.stdout.flush()
    elif request.json:
        data = reply.get("data")
        if data is None:
            data = {"ok": reply.get("ok", True), "text": plain(reply.get("text", ""))}
        json.dump(data, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        print(plain(reply.get("text", "")), file=sys.stdout if reply.get("ok", True) else sys.stderr)
