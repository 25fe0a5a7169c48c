"""A JSON object that is read field by field; what is wrong with it is told all at once."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from ragjax.errors import listing
from ragjax.serving.refusal import Refusal


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is.

    Raises:
      Refusal: it is none.
    """
    try:
        found = json.loads(body, parse_constant=_no_number)
        # Half of a surrogate pair is a string in JSON, and no text.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not JSON: {str(error)[:200]}.") from error
    if not isinstance(found, dict):
        raise Refusal(400, 'The body must be a JSON object, such as {"prompt": "Once upon"}.')
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


class Fields:
    """Takes fields out of an object; null is as good as absent."""

    def __init__(self, values: dict[str, Any]):
        self._values = {name: value for name, value in values.items() if value is not None}
        self._problems: list[str] = []
        self._first: str | None = None

    def problem(self, name: str, message: str) -> None:
        """Notes that a field cannot be used."""
        self._first = self._first or name
        self._problems.append(f"{name} {message}")

    def value(self, name: str) -> Any:
        """A field as it is; none where it is absent."""
        return self._values.pop(name, None)

    def whole(self, name: str, default: int | None, low: int, high: int) -> Any:
        """A whole number between `low` and `high`."""
        return self._number(name, default, low, high, int, "a whole number")

    def real(self, name: str, default: float, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        return float(self._number(name, default, low, high, (int, float), "a number"))

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._values.pop(name, default)
        if not isinstance(value, bool):
            self.problem(name, f"must be true or false, found {_short(value)}")
            return default
        return value

    def text(self, name: str) -> str | None:
        """A string."""
        value = self._values.pop(name, None)
        if value is not None and not isinstance(value, str):
            self.problem(name, f"must be a string, found {_short(value)}")
            return None
        return value

    def strings(self, name: str, most: int) -> tuple[str, ...]:
        """A string, or a few; none of them empty."""
        value = self._values.pop(name, [])
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(each, str) and each for each in found):
            self.problem(name, f"must be a string or a list of strings, none empty, found {_short(value)}")
            return ()
        if len(found) > most:
            self.problem(name, f"may hold {most} strings, found {len(found)}")
        return tuple(found)

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses a field that would change the answer, unless it has a value that does not."""
        value = self._values.pop(name, None)
        if value is not None and value not in allowed:
            self.problem(name, f"is not supported: leave it out, found {_short(value)}")

    def finish(self, harmless: Collection[str]) -> None:
        """Refuses what was not taken and is not harmless.

        Raises:
          Refusal: names everything that was wrong.
        """
        for name in self._values:
            if name not in harmless:
                self.problem(_short(name), "is not known here: leave it out")
        if self._problems:
            raise Refusal(400, f"Cannot be answered:\n{listing(self._problems)}", param=self._first)

    def _number(self, name: str, default: Any, low: float, high: float, kind: Any, called: str) -> Any:
        value = self._values.pop(name, default)
        if value is None:
            return None
        right = isinstance(value, kind) and not isinstance(value, bool)
        if not right or not low <= value <= high:
            self.problem(name, f"must be {called} from {low:g} to {high:g}, found {_short(value)}")
            return default
        return value


def _short(value: Any) -> str:
    told = value if isinstance(value, str) else json.dumps(value)
    return told if len(told) <= 60 else f"{told[:60]}..."
