"""Where a text ends: at a token, or before a string."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Hands text on as it comes, up to where one of several strings begins.

    What may be the beginning of one is held back until it shows.
    """

    def __init__(self, strings: Sequence[str]):
        self._strings = tuple(strings)
        self._held = ""
        self.met = False
        """Whether one of the strings has come; nothing is handed on after it."""

    def push(self, piece: str) -> str:
        """What of the text so far, `piece` at its end, can be handed on and has not been."""
        if self.met:
            return ""
        text = self._held + piece
        found = [place for place in map(text.find, self._strings) if place >= 0]
        if found:
            self.met, self._held = True, ""
            return text[: min(found)]
        safe = len(text) - max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[safe:]
        return text[:safe]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` begin `string`."""
    sizes = range(min(len(text), len(string) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(string[:size])), 0)
