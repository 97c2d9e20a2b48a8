"""The Unix socket through which ``letta-bridge ctl`` reaches the running bridge. Whoever may open it is an admin.

``POST /v1/command`` with ``{"words": […], "cwd": "/…"}`` is answered with lines of JSON: any number of
``{"progress": text, "job": id}``, then one ``{"reply": {"text", "data", "ok", "file"?}}``; a file is
``{"name", "base64"}``.
"""

import asyncio
import base64
import contextlib
import errno
import json
import logging
import os
import socket
import stat
import uuid
from pathlib import Path
from typing import Any

from aiohttp import web

from ..ids import JobID, RoomID
from ..routing.permissions import Level
from . import parse
from .call import CTL
from .carry import Asked, Carrier
from .lane import reference
from .table import Reply

log = logging.getLogger(__name__)

LONGEST_PATH = 107
"""Bytes: Linux has 108 for the name of a Unix socket, with a zero at its end (unix(7))."""
_LOOK_EVERY = 0.2
_LARGEST = 1 << 20
_STOP_SECONDS = 1.0
_BACKLOG = 128


class SocketError(Exception):
    """The socket cannot be used; the text says why and names the key to change."""


def socket_path(base: Path, name: str) -> Path:
    """Where the socket is.

    Raises:
        SocketError: a Unix socket cannot have such a long name.
    """
    path = (base / name).absolute()
    if (size := len(os.fsencode(path))) > LONGEST_PATH:
        raise SocketError(
            f"the path {path} has {size} bytes, and a Unix socket can have {LONGEST_PATH}; set management.socket to a "
            "shorter one, such as /run/letta-bridge.sock"
        )
    return path


class CtlServer:
    """Serves it.

    Args:
        carrier: carries the commands out.
        base: the folder of the configuration.
        name: ``management.socket``.
    """

    def __init__(self, carrier: Carrier, base: Path, name: str) -> None:
        self._carrier = carrier
        self._base = base
        self._name = name
        self._runner: web.AppRunner | None = None
        self._made: tuple[Path, int] | None = None

    async def start(self) -> None:
        """Listen. A socket that cannot be had is said in the log and keeps no message waiting."""
        try:
            path = await asyncio.to_thread(socket_path, self._base, self._name)
            listening, inode = await asyncio.to_thread(_listen, path)
        except (SocketError, OSError) as error:
            log.error("the command line cannot be served", extra={"action": "ctl_failed", "why": str(error)})
            return
        self._made = path, inode
        app = web.Application(client_max_size=_LARGEST)
        app.router.add_post("/v1/command", self._command)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_STOP_SECONDS)
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()

    async def stop(self) -> None:
        """Listen no more, and leave no file behind."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._made is not None:
            await asyncio.to_thread(_remove, *self._made)

    # -- one command

    async def _command(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
            words, cwd = body["words"], body.get("cwd", "/")
            fine = isinstance(words, list) and all(isinstance(word, str) for word in words) and isinstance(cwd, str)
        except (ValueError, KeyError, TypeError, AttributeError):
            fine = False
        if not fine:
            return web.json_response({"error": "the body is to be {words: [texts], cwd: text}"}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        key = f"ctl|{uuid.uuid4()}"
        try:
            reply = await self._carry_out(words, cwd, key)
            if reply.job is not None:
                reply = await self._follow(response, JobID(reply.job), reply)
        except OSError:
            raise
        except Exception:  # the boundary of a command
            log.exception("a command broke", extra={"action": "command_failed", "reference": reference(key)})
            reply = Reply(
                f"Something went wrong inside the bridge; see the log (reference {reference(key)}).", ok=False
            )
        with contextlib.suppress(ConnectionError):  # whoever asked has gone
            await response.write(await asyncio.to_thread(lambda: _encoded({"reply": _shown(reply)})))
            await response.write_eof()
        return response

    async def _carry_out(self, words: list[str], cwd: str, key: str) -> Reply:
        asked = Asked(
            line=parse.of_words(words),
            who=CTL,
            level=Level.ADMIN,
            via="ctl",
            key=key,
            room_id=RoomID(""),
            cwd=Path(cwd),
        )
        return await self._carrier.carry_out(asked)

    async def _follow(self, response: web.StreamResponse, job_id: JobID, begun: Reply) -> Reply:
        """Tell the steps of a job as they are made, until it ends."""
        desk, engine = self._carrier.desk, self._carrier.engine
        told: set[str] = set()
        while True:
            job = await desk.jobs.get(job_id)
            if job is None:
                return begun
            lines = [f"{step.label}: done" for step in engine.steps(job) if step.name in job.done]
            if not told:
                lines.insert(0, f"{engine.title(job)} (job {job_id})")
            if job.error and job.open:
                lines.append(
                    f"waiting: {job.error}" if job.state == "open" else f"{job.error}; taking back what was done"
                )
            for line in lines:
                if line not in told:
                    told.add(line)
                    await _line(response, {"progress": line, "job": job_id})
            data = {"job": job_id, "kind": job.kind, "state": job.state, "error": job.error, "result": job.done}
            if not job.open:
                return Reply(await engine.outcome(job), data=data, ok=job.state == "done")
            if desk.lanes.closing:
                return Reply(f"The bridge is stopping; job {job_id} goes on when it runs again.", data=data, ok=False)
            await asyncio.sleep(_LOOK_EVERY)


def _shown(reply: Reply) -> dict[str, Any]:
    text = reply.text.replace(f"`{parse.PREFIX} ", "`letta-bridge ctl ")
    shown: dict[str, Any] = {"text": text, "data": reply.data, "ok": reply.ok}
    if reply.file is not None:
        name, data = reply.file
        shown["file"] = {"name": name, "base64": base64.b64encode(data).decode()}
    return shown


async def _line(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await response.write(_encoded(value))


def _encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value, default=str).encode() + b"\n"


def _remove(path: Path, inode: int) -> None:
    """Take our socket away, if it is still ours that is there."""
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _listen(path: Path) -> tuple[socket.socket, int]:
    """A socket for its owner only, from the first moment on; and the number of its file."""
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(os.fspath(path))
        listening.listen(_BACKLOG)  # at once: who finds a socket that nobody listens on takes it for a dead one's
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    listening.setblocking(False)
    return listening, path.lstat().st_ino


def _clear(path: Path) -> None:
    """Take away what a process that is dead has left.

    Raises:
        SocketError: somebody listens there, or it is no socket.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketError(f"{path} (management.socket) is there and is no socket; move it away or name another one")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(1.0)
        try:
            trial.connect(os.fspath(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise SocketError(f"{path} (management.socket) cannot be looked at: {error.strerror}") from error
            _remove(path, found.st_ino)
            return
    raise SocketError(f"another process listens on {path}; set management.socket to another one for one of the two")
