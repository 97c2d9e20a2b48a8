"""The generated picture: a valid PNG, the same for the same agent for ever, different for different agents."""

import struct
import zlib

from letta_bridge.ids import AgentID
from letta_bridge.mirror.picture import SIDE, make_picture


def _read(png: bytes) -> tuple[bytes, list[str]]:
    """Palette, and the lines as text of 0 and 1."""
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
    return chunks[b"PLTE"], [f"{int.from_bytes(row[1:], 'big'):0{SIDE}b}" for row in rows]


def test_it_is_a_symmetric_png_of_256_pixels() -> None:
    for number in range(50):
        _, rows = _read(make_picture(AgentID(f"agent-{number}")))
        assert SIDE == 256
        assert all(row == row[::-1] for row in rows)
        assert any("1" in row for row in rows)


def test_it_follows_from_the_id_alone() -> None:
    palette, rows = _read(make_picture(AgentID("agent-1")))
    assert palette.hex() == PALETTE and [row[28:228:40] for row in rows[48:248:40]] == FACE
    assert len({make_picture(AgentID(f"agent-{number}")) for number in range(500)}) > 490


# changing these changes every agent's face
PALETTE = "f2f3e7d4be34"
FACE = ["11011", "00000", "00100", "00000", "10001"]
