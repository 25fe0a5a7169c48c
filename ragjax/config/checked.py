"""What every schema does when it is built: looks for problems, and tells them all at once."""

from __future__ import annotations

from ragjax.errors import InputError, listing


class Checked:
    """Runs `_problems()` when the dataclass is built and reports every problem at once."""

    def _problems(self) -> list[str]:
        return []

    def __post_init__(self) -> None:
        found = self._problems()
        if found:
            raise InputError(f"{type(self).__name__}: cannot be used:\n{listing(found)}")


def at_least(owner: object, low: float, *names: str) -> list[str]:
    """Problems of fields that must not be below `low`, nor NaN."""
    return [
        f"{name} must be at least {low:g}, found {getattr(owner, name)!r}"
        for name in names
        if not getattr(owner, name) >= low
    ]


def below_one(owner: object, *names: str) -> list[str]:
    """Problems of fields that must lie in [0, 1)."""
    return [
        f"{name} must be at least 0 and below 1, found {getattr(owner, name)!r}"
        for name in names
        if not 0 <= getattr(owner, name) < 1
    ]
