"""What a client is told where its request cannot be answered."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

Outcome: TypeAlias = Literal[
    "completed", "cancelled", "timeout", "invalid", "unauthorized", "full", "draining", "error"
]
"""What became of a request."""


class Refusal(Exception):
    """An error in OpenAI's shape, with its status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        outcome: Outcome = "invalid",
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.outcome: Outcome = outcome
        self.retry_after = retry_after
        self.counted = False
        """Whether metrics know of it already."""

    def body(self) -> dict[str, Any]:
        """The JSON that is answered."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
