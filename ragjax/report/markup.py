"""HTML built from Python values, escaped by default."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Characters HTML forbids or UTF-8 cannot hold; a tokenizer's broken bytes decode to some of them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = frozenset({"br", "hr", "img", "link", "meta"})


class Markup(str):
    """HTML that may be inserted as it is: made by this file's functions, never from data."""


def escaped(value: object) -> Markup:
    """`value` as HTML text: a `Markup` as it is, anything else escaped, also for use in attributes.

    Example:
      >>> escaped("</script><b>")
      '&lt;/script&gt;&lt;b&gt;'
    """
    if isinstance(value, Markup):
        return value
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", text), quote=True))


def joined(parts: Iterable[object], separator: str = "") -> Markup:
    """All parts that are not None, escaped, one after the other."""
    return Markup(escaped(separator).join(escaped(part) for part in parts if part is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element.

    Args:
      name: the element's name.
      children: text (escaped), `Markup`, or None (left out).
      attributes: values; None and False leave the attribute out, True gives it no value. `class_` is
        `class`, `aria_label` is `aria-label`.

    Example:
      >>> tag("td", "a < b", class_="best", data_value=3)
      '<td class="best" data-value="3">a &lt; b</td>'
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{escaped(value)}"')
    start = f"<{name}{''.join(written)}>"
    return Markup(start if name in _VOID else f"{start}{joined(children)}</{name}>")
