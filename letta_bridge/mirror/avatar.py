"""Where an agent's avatar comes from, and fetching it without being led into the own network."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ..db.database import clean
from ..ids import AgentID
from .picture import make_picture

_MXC = re.compile(
    r"mxc://(?:[A-Za-z0-9][A-Za-z0-9.-]{0,229}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?/[A-Za-z0-9_-]{1,255}\Z"
)
_URL = re.compile(r"https?://[\x21-\x5b\x5d-\x7e]{1,2000}\Z", re.IGNORECASE)  # printable ASCII without a backslash
_KEYS = ("avatar", "avatar_url")
_LONGEST_SOURCE = 2048
_MAGIC = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AvatarError(Exception):
    """The avatar that an agent's metadata names cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and what it is."""

    data: bytes
    content_type: str


def avatar_source(metadata: Mapping[str, Any]) -> str:
    """What an agent's metadata names as its avatar: the first text under ``avatar`` or ``avatar_url``, or ``""``."""
    for key in _KEYS:
        value = metadata.get(key)
        if isinstance(value, str) and value.strip():
            return clean(value.strip())[:_LONGEST_SOURCE]
    return ""


def is_mxc(source: str) -> bool:
    """Whether the source is media of a homeserver already."""
    return _MXC.match(source) is not None


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, whatever notation it hides in.

    IPv6 forms that carry an IPv4 address (mapped, NAT64, 6to4, Teredo) are refused altogether: what they reach
    depends on the network the bridge runs in.
    """
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped is None and address.sixtofour is None and address.teredo is None
    return True


class _CheckedResolver(AbstractResolver):
    """Looks a name up once and hands out its addresses only if every one of them is permitted.

    The connection then goes to exactly these addresses, so that a second, different answer of the DNS has no effect.
    """

    def __init__(self, permitted: Callable[[Address], bool]) -> None:
        self._permitted = permitted

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
        )
        results: list[ResolveResult] = []
        for kind, _, proto, _, sockaddr in found:
            address = str(sockaddr[0])
            if not self._permitted(ipaddress.ip_address(address)):
                raise AvatarError("its host is inside a private network")
            results.append(
                ResolveResult(
                    hostname=host, host=address, port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
                )
            )
        return results

    async def close(self) -> None:
        """Nothing is held."""


class Avatars:
    """Makes and fetches pictures.

    Args:
        hosts: host names from which avatars may be fetched, lower-case; compared exactly.
        max_bytes: the largest picture.
        timeout: seconds for looking up, connecting and reading together.
        permitted: which addresses may be connected to.
    """

    def __init__(
        self,
        hosts: tuple[str, ...],
        max_bytes: int,
        timeout: float,
        *,
        permitted: Callable[[Address], bool] = is_public,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._permitted = permitted

    async def generated(self, agent_id: AgentID) -> Picture:
        """The picture that follows from the agent's id."""
        return Picture(await asyncio.to_thread(make_picture, agent_id), "image/png")

    async def get(self, agent_id: AgentID, source: str) -> Picture:
        """The picture at ``source`` (an http or https address), or the generated one when that is ``""``.

        Raises:
            AvatarError: it is not allowed, not there, or not a picture.
        """
        if not source:
            return await self.generated(agent_id)
        url = self._checked(source)
        try:
            async with asyncio.timeout(self._timeout):
                return _identified(await self._fetch(url))
        except TimeoutError:
            raise AvatarError("its host took too long") from None
        except AvatarError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AvatarError(f"it could not be fetched ({type(error).__name__})") from None

    def _checked(self, source: str) -> URL:
        """``source`` parsed by the very parser that the request uses, if it may be fetched at all."""
        if not _URL.match(source):
            raise AvatarError("it is neither an mxc:// nor an http(s) address")
        try:
            url = URL(source)
            host = (url.host or "").lower()
        except ValueError:
            raise AvatarError("it is not an address") from None
        if url.user is not None or url.password is not None:
            raise AvatarError("it carries a user name")
        if host not in self._hosts:
            raise AvatarError("its host is not in mirror.avatar_hosts")
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return url
        if not self._permitted(literal):  # an address in the URL never reaches the resolver
            raise AvatarError("its host is inside a private network")
        return url

    async def _fetch(self, url: URL) -> bytes:
        connector = aiohttp.TCPConnector(
            resolver=_CheckedResolver(self._permitted), use_dns_cache=False, force_close=True
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "image/*", "Accept-Encoding": "identity"},
                auto_decompress=False,
                trust_env=False,
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise AvatarError(f"its host answered {response.status}")
            return await self._read(response)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._max_bytes:
                raise AvatarError(f"it is larger than {self._max_bytes // 1024} KiB")
        return bytes(data)


def _identified(data: bytes) -> Picture:
    """By its first bytes, not by what the server calls it."""
    for magic, content_type in _MAGIC:
        if magic.match(data):
            return Picture(data, content_type)
    raise AvatarError("it is not a PNG, JPEG, GIF or WebP picture")
