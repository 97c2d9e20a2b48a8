"""What the single checks of ``letta-bridge check`` have in common: their findings and what they know of each other."""

import asyncio
import json as json_module
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import aiohttp

from ..config import Config
from .exitcodes import Exit

REQUEST_SECONDS = 10.0


class Status(Enum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIP = "skip"  # could not be asked, because something before it failed


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check: what was found, what to do about it, and the exit code of its class."""

    check: str
    status: Status
    text: str
    remedy: str = ""
    code: Exit = Exit.OK

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "check": self.check,
            "status": self.status.value.lower(),
            "text": self.text,
            "remedy": self.remedy,
            "class": self.code.name.lower(),
        }


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, Status.OK, text)


def warn(check: str, text: str, remedy: str) -> Finding:
    """The bridge can run, and yet this is probably not meant."""
    return Finding(check, Status.WARN, text, remedy)


def fail(check: str, code: Exit, text: str, remedy: str) -> Finding:
    """The bridge cannot do its work."""
    return Finding(check, Status.FAIL, text, remedy, code)


def skip(check: str, why: str) -> Finding:
    """Not asked."""
    return Finding(check, Status.SKIP, f"not checked: {why}")


@dataclass(slots=True)
class Checkup:
    """What is checked, and what earlier checks have learnt.

    ``running``: this very bridge answers on its port. ``port_free``: nobody does. ``known_agents``: how many agents the
    bridge's database takes for present in Letta, 0 while that is not known.
    """

    config: Config
    registration_path: Path
    session: aiohttp.ClientSession
    running: bool = False
    port_free: bool = False
    known_agents: int = 0
    failed: set[str] = field(default_factory=set)

    @property
    def listen_host(self) -> str:
        """The address under which this machine reaches the port."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.config.appservice.host, self.config.appservice.host)  # noqa: S104  (compared, not bound)
        return f"[{host}]" if ":" in host else host

    @property
    def own_url(self) -> str:
        """The bridge's own address on this machine."""
        return f"http://{self.listen_host}:{self.config.appservice.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered, or why it did not (``status`` 0)."""

    status: int
    body: Any
    trouble: str = ""

    @property
    def errcode(self) -> str:
        """Matrix's error code, if there is one."""
        return str(self.body.get("errcode", "")) if isinstance(self.body, dict) else ""

    @property
    def error(self) -> str:
        """Matrix's error text, or the trouble."""
        text = self.body.get("error", "") if isinstance(self.body, dict) else ""
        return self.trouble or str(text) or f"HTTP {self.status}"


async def ask(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    token: str | None = None,
    params: dict[str, str] | None = None,
    json: object = None,
    seconds: float = REQUEST_SECONDS,
) -> Answer:
    """One request. Never raises for what the network or the server does."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with session.request(
            method, url, headers=headers, params=params, json=json, timeout=timeout, allow_redirects=False
        ) as response:
            raw = await response.content.read(1 << 20)
            try:
                body = json_module.loads(raw)
            except ValueError:
                body = None
            return Answer(response.status, body)
    except TimeoutError:
        return Answer(0, None, f"no answer within {seconds:g} seconds")
    except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
        return Answer(0, None, str(error) or type(error).__name__)
