"""Gray pictures as PNG, inside the page."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

from ragjax.report.markup import Markup, tag


def png(rows: Sequence[Sequence[int]]) -> bytes:
    """A gray picture of 8 bits as a PNG file.

    Args:
      rows: brightness of each point, 0 black to 255 white; all rows as long as one another.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def picture(rows: Sequence[Sequence[int]], *, told: str) -> Markup:
    """The picture as an element that is stretched without blur.

    Args:
      rows: as in `png`.
      told: what a screen reader says.
    """
    data = base64.b64encode(png(rows)).decode()
    return tag(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=told,
        width=len(rows[0]),
        height=len(rows),
        class_="pixels",
    )
