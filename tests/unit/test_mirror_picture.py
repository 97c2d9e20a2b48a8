"""The generated picture: a valid PNG, the same for the same agent for ever, different for different agents."""

import hashlib
import struct
import zlib

from letta_bridge.ids import AgentID
from letta_bridge.mirror.picture import SIDE, make_picture


def _pixels(png: bytes) -> list[str]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = {}, png[8:]
    while rest:
        length, kind = struct.unpack(">I4s", rest[:8])
        data, (crc,) = rest[8 : 8 + length], struct.unpack(">I", rest[8 + length : 12 + length])
        assert crc == zlib.crc32(kind + data)
        chunks[kind], rest = data, rest[12 + length :]
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (width, height, depth, colour) == (SIDE, SIDE, 1, 3)
    raw, line = zlib.decompress(chunks[b"IDAT"]), SIDE // 8 + 1
    assert len(raw) == line * SIDE
    rows = [raw[i : i + line] for i in range(0, len(raw), line)]
    assert all(row[0] == 0 for row in rows)
    return [f"{int.from_bytes(row[1:], 'big'):0{SIDE}b}" for row in rows]


def test_it_is_a_symmetric_png_of_256_pixels() -> None:
    for number in range(50):
        rows = _pixels(make_picture(AgentID(f"agent-{number}")))
        assert SIDE == 256
        assert all(row == row[::-1] for row in rows)
        assert any("1" in row for row in rows)


def test_it_follows_from_the_id_alone() -> None:
    first = make_picture(AgentID("agent-1"))
    assert hashlib.sha256(first).hexdigest() == GOLDEN  # changing the picture changes every agent's face
    assert len(first) < 2000
    assert len({make_picture(AgentID(f"agent-{number}")) for number in range(500)}) > 490


GOLDEN = "1d11012892b0eada3366c0a3f04c0764d7f1c9219a6464c0fa1bc2931e2c91a4"
