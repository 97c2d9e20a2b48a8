"""The picture of an agent that has none: the same for the same agent id, on every machine and at every time."""

import colorsys
import hashlib
import struct
import zlib

from ..ids import AgentID

_CELLS = 5
_CELL = 40
_EDGE = 28
SIDE = _CELLS * _CELL + 2 * _EDGE
"""Pixels of the picture's side."""


def make_picture(agent_id: AgentID) -> bytes:
    """A symmetric pattern in one colour on a light ground, as a small PNG; a few milliseconds of work."""
    digest = hashlib.sha256(b"letta_bridge picture 1\x00" + agent_id.encode("utf-8", "surrogatepass")).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    ink = _rgb(hue, 0.42 + digest[2] / 255 * 0.12, 0.55 + digest[3] / 255 * 0.2)
    ground = _rgb((hue + 0.04) % 1.0, 0.93, 0.35)
    rows = [_row(_pattern(digest, line)) for line in range(_CELLS)]
    blank = bytes(1 + (SIDE + 7) // 8)  # filter byte 0, then one bit per pixel
    image = blank * _EDGE + b"".join(row * _CELL for row in rows) + blank * _EDGE
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 1, 3, 0, 0, 0)),
            _chunk(b"PLTE", ground + ink),
            _chunk(b"IDAT", zlib.compress(image, 9)),
            _chunk(b"IEND", b""),
        )
    )


def _pattern(digest: bytes, line: int) -> list[bool]:
    """One line of cells; the right half mirrors the left. The cell in the middle is always there."""
    left = [digest[4 + line * 3 + column] & 1 == 1 for column in range(3)]
    if line == _CELLS // 2:
        left[2] = True
    return [*left, left[1], left[0]]


def _row(cells: list[bool]) -> bytes:
    bits = "0" * _EDGE + "".join(("1" if cell else "0") * _CELL for cell in cells) + "0" * _EDGE
    return b"\x00" + int(bits, 2).to_bytes(SIDE // 8, "big")


def _rgb(hue: float, lightness: float, saturation: float) -> bytes:
    return bytes(round(part * 255) for part in colorsys.hls_to_rgb(hue, lightness, saturation))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
