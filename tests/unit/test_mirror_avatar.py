"""Where avatars may come from: an address in an agent's metadata must not lead into the own network."""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from letta_bridge.ids import AgentID
from letta_bridge.mirror.avatar import AvatarError, Avatars, avatar_source, is_mxc, is_public

AGENT = AgentID("agent-1")
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 100
Host = Callable[[str], str]


@pytest.mark.parametrize(
    ("metadata", "source"),
    [
        ({}, ""),
        ({"avatar": "mxc://a/b"}, "mxc://a/b"),
        ({"avatar": 7, "avatar_url": " https://x/y "}, "https://x/y"),
        ({"avatar": "", "avatar_url": "https://x/y"}, "https://x/y"),
        ({"avatar": {"url": "x"}}, ""),
        ({"avatar": "a" * 5000}, "a" * 2048),
    ],
)
def test_source(metadata: dict[str, Any], source: str) -> None:
    assert avatar_source(metadata) == source


def test_mxc() -> None:
    assert is_mxc("mxc://example.org/AbC-_9") and is_mxc("mxc://[::1]:8448/x")
    for wrong in (
        "mxc://example.org/",
        "mxc:///x",
        "mxc://../x",
        "mxc://a/b/c",
        "mxc://a/b?c",
        "mxc://a/..",
        "https://a/b",
        "mxc://a b/c",
    ):
        assert not is_mxc(wrong)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1",
        "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "::127.0.0.1",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Dns:
    """Answers what a test says, and counts."""

    def __init__(self) -> None:
        self.answers: dict[str, list[str]] = {}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in self.answers[host]
        ]


@pytest.fixture
async def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    """The running loop's name resolution."""
    fake = Dns()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fake.getaddrinfo)
    return fake


@pytest.fixture
async def server(dns: Dns) -> AsyncIterator[Callable[..., str]]:
    """``server(answer)`` is the address of a server called ``pics.example`` that gives ``answer``."""
    runners: list[web.AppRunner] = []
    hits: list[str] = []

    async def start(answer: Callable[[web.Request], Any]) -> str:
        async def handle(request: web.Request) -> web.StreamResponse:
            hits.append(request.path)
            result = answer(request)
            return await result if asyncio.iscoroutine(result) else result

        app = web.Application()
        app.router.add_get("/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        dns.answers["pics.example"] = ["127.0.0.1"]
        return f"http://pics.example:{runner.addresses[0][1]}/a.png"

    yield start
    for runner in runners:
        await runner.cleanup()


def _avatars(**options: Any) -> Avatars:
    """Avatars from pics.example; the loopback of the test's server counts as public unless said otherwise."""
    options.setdefault("permitted", lambda _: True)
    return Avatars(
        ("pics.example", "127.0.0.1", "::1", "2130706433", "0x7f.1", "169.254.169.254"), 1000, 2.0, **options
    )


async def test_no_source_gives_the_generated_picture() -> None:
    picture = await _avatars().get(AGENT, "")
    assert picture.content_type == "image/png" and picture.data.startswith(PNG[:8])
    assert picture == await _avatars().generated(AGENT)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0rest", "image/jpeg"),
        (b"GIF89a....", "image/gif"),
        (b"RIFF\n\x00\x00\x00WEBPVP8 ", "image/webp"),
    ],
)
async def test_pictures_are_known_by_their_bytes(server: Any, data: bytes, kind: str) -> None:
    url = await server(lambda _: web.Response(body=data, content_type="text/html"))
    assert (await _avatars().get(AGENT, url)).content_type == kind


@pytest.mark.parametrize(
    "data", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", b"RIFF1234WAVE", b"\x89PN"]
)
async def test_other_things_are_refused(server: Any, data: bytes) -> None:
    url = await server(lambda _: web.Response(body=data, content_type="image/png"))
    with pytest.raises(AvatarError, match="not a PNG"):
        await _avatars().get(AGENT, url)


@pytest.mark.parametrize(
    "source",
    [
        "ftp://pics.example/a", "file:///etc/passwd", "data:image/png;base64,AAAA", "pics.example/a", "http://",
        "http://[/a", "http://pics.example\\@evil.example/a", "http://pics.example /a", "http://pics.example/\n",
        "javascript:alert(1)", "gopher://pics.example/", "http://pics.example:99999/a",
    ],
)  # fmt: skip
async def test_what_is_no_address(source: str, dns: Dns) -> None:
    with pytest.raises(AvatarError):
        await _avatars().get(AGENT, source)
    assert dns.asked == []


@pytest.mark.parametrize(
    "source",
    [
        "http://evil.example/a", "http://pics.example.evil.example/a", "http://evil.example/pics.example",
        "http://pics.example@evil.example/", "http://evil.example#@pics.example/", "http://evil.example?@pics.example/",
        "http://xpics.example/", "http://pics.example./a", "http://localhost/a", "http://127.1/a",
    ],
)  # fmt: skip
async def test_hosts_that_are_not_listed(source: str, dns: Dns) -> None:
    with pytest.raises(AvatarError):
        await _avatars().get(AGENT, source)
    assert dns.asked == []


async def test_a_listed_host_with_a_user_name_is_refused(dns: Dns) -> None:
    with pytest.raises(AvatarError, match="user name"):
        await _avatars().get(AGENT, "http://evil.example:secret@pics.example/a")


@pytest.mark.parametrize("source", ["http://127.0.0.1/a", "http://[::1]/a", "http://169.254.169.254/latest/meta-data"])
async def test_a_private_address_is_refused_even_when_listed(source: str, dns: Dns) -> None:
    with pytest.raises(AvatarError, match="private network"):
        await _avatars(permitted=is_public).get(AGENT, source)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1"])
async def test_odd_spellings_of_addresses_are_refused(host: str, dns: Dns) -> None:
    dns.answers[host] = ["127.0.0.1"]
    with pytest.raises(AvatarError, match=r"private network|Invalid"):
        await _avatars(permitted=is_public).get(AGENT, f"http://{host}/a")


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"], ["fd00::1"]])
async def test_a_listed_name_that_leads_inside_is_refused(answer: list[str], server: Any, dns: Dns) -> None:
    hits: list[str] = []
    url = await server(lambda request: hits.append(request.path) or web.Response(body=PNG))
    dns.answers["pics.example"] = answer
    with pytest.raises(AvatarError, match="private network"):
        await _avatars(permitted=is_public).get(AGENT, url)
    assert hits == []


async def test_the_name_is_looked_up_once_and_that_address_is_used(server: Any, dns: Dns) -> None:
    url = await server(lambda _: web.Response(body=PNG))
    checked: list[str] = []

    def permitted(address: Any) -> bool:
        checked.append(str(address))
        dns.answers["pics.example"] = ["127.9.9.9"]  # a second look would lead elsewhere
        return True

    assert (await _avatars(permitted=permitted).get(AGENT, url)).data == PNG
    assert dns.asked == ["pics.example"] and checked == ["127.0.0.1"]


async def test_redirects_are_not_followed(server: Any) -> None:
    hits: list[str] = []

    def answer(request: web.Request) -> web.Response:
        hits.append(request.path)
        return web.Response(status=302, headers={"Location": "/inside"})

    with pytest.raises(AvatarError, match="302"):
        await _avatars().get(AGENT, await server(answer))
    assert hits == ["/a.png"]


@pytest.mark.parametrize("status", [404, 500, 206])
async def test_only_200_counts(server: Any, status: int) -> None:
    with pytest.raises(AvatarError, match=str(status)):
        await _avatars().get(AGENT, await server(lambda _: web.Response(status=status, body=PNG)))


async def test_too_large_is_noticed_while_reading(server: Any) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(PNG)
        while request.transport is not None:
            await response.write(b"\x00" * 500)
        return response

    with pytest.raises(AvatarError, match="larger"):
        await _avatars().get(AGENT, await server(endless))


async def test_compressed_answers_are_not_unpacked(server: Any) -> None:
    url = await server(lambda _: web.Response(body=b"\x1f\x8b\x08", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(AvatarError, match="not a PNG"):
        await _avatars().get(AGENT, url)


async def test_a_slow_host_costs_only_the_timeout(server: Any) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response(body=PNG)

    url = await server(slow)
    avatars = Avatars(("pics.example",), 1000, 0.2, permitted=lambda _: True)
    with pytest.raises(AvatarError, match="too long"):
        await avatars.get(AGENT, url)


async def test_a_host_that_is_not_there(dns: Dns) -> None:
    with pytest.raises(AvatarError, match="could not be fetched"):
        await _avatars().get(AGENT, "http://pics.example/a")
