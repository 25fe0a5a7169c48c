"""A request's body: JSON, not too long, and sent in time."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect, Request

from ragjax.serving.fields import read_object
from ragjax.serving.refusal import Refusal

_SECONDS = 20.0
"""In which a body must come."""


async def json_body(request: Request, most: int) -> dict[str, Any]:
    """The JSON object that a request holds.

    Args:
      request: of which nothing was read.
      most: bytes.

    Raises:
      Refusal: it is something else, too long, or does not come.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # What other sites' forms may send without being asked for leave is never of this type.
        raise Refusal(415, "Send JSON, with the header Content-Type: application/json.")
    try:
        return read_object(await asyncio.wait_for(_read(request, most), _SECONDS))
    except TimeoutError as error:
        raise Refusal(408, f"The body did not come within {_SECONDS:g} seconds.") from error
    except ClientDisconnect as error:
        raise Refusal(400, "The client left before its request was whole.", outcome="cancelled") from error


async def _read(request: Request, most: int) -> bytes:
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise Refusal(413, f"The body is longer than {most} bytes: send less.")
    return bytes(found)
