"""How models are served."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from ragjax.config.checked import Checked, at_least
from ragjax.config.decoding import CacheDtype

_NAME = re.compile(r"\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+")


@dataclass(frozen=True)
class Serve(Checked):
    """Where the server listens, how much it does at once, and what it refuses."""

    host: str = "127.0.0.1"
    """Address to listen on; one that others can reach needs a key."""
    port: int = 8000
    """0: a free one."""
    slots: int = 4
    """Requests that each model answers at once."""
    room: int | None = None
    """Tokens of a request, prompt and answer together; none: as many as the model has positions, 1024 at
    most. A step of the model reads slots x room keys."""
    queue: int = 64
    """Requests of each model that may wait; more are told to come back (429)."""
    timeout: float = 300.0
    """Seconds a request may take, its wait included."""
    drain: float = 60.0
    """Seconds that SIGTERM and Ctrl-C let what runs go on; then it is cut off."""
    max_body: int = 1_000_000
    """Bytes of a request's body."""
    allow_host: tuple[str, ...] = ()
    """Names by which clients may call the server, besides those of this machine and HOST."""
    api_key_file: Path | None = None
    """File with the bearer token that clients must send; none: RAGJAX_API_KEY, and without it no token."""
    cache_dtype: CacheDtype = "float32"
    """Type in which keys and values are kept."""

    def _problems(self) -> list[str]:
        found = at_least(self, 1, "slots", "queue") + at_least(self, 1000, "max_body")
        if not 0 <= self.port <= 65535:
            found.append(f"port must lie between 0 and 65535, found {self.port}")
        if self.room is not None:
            found += at_least(self, 4, "room")
        if not 0 < self.timeout < float("inf"):
            found.append(f"timeout must be above 0 seconds, found {self.timeout}")
        if not 0 <= self.drain < float("inf"):
            found.append(f"drain must be 0 seconds or more, found {self.drain}")
        found += [
            f"allow_host takes names without scheme, port or path, as box.lan or [fd00::1], found {host!r}"
            for host in self.allow_host
            if not _NAME.fullmatch(host)
        ]
        return found

    @property
    def only_here(self) -> bool:
        """Whether nobody but this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
