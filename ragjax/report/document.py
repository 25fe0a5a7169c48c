"""The frame of every page: one HTML document that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from string import Template

from ragjax.errors import InputError
from ragjax.report.markup import Markup, escaped, joined, tag

_HERE = Path(__file__).parent


def document(
    *, title: str, name: str, top: Markup, parts: dict[str, tuple[str, Markup | None]], footer: str
) -> str:
    """A whole page as HTML.

    Args:
      title: of the window.
      name: of what the page is about, in the bar.
      top: what comes first.
      parts: link and section, by the section's name; those that are None are left out.
      footer: the last line.
    """
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {key: part for key, part in parts.items() if part[1] is not None}
    links = (tag("a", link, href=f"#{key}") for key, (link, _) in shown.items())
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escaped(title),
        script_hash=digest,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        name=escaped(name),
        links=joined(links),
        top=top,
        sections=joined(section for _, section in shown.values()),
        footer=escaped(footer),
        script=Markup(script),
    )


def write_document(text: str, destination: Path) -> Path:
    """Writes a page, whole or not at all.

    Raises:
      InputError: the destination is a folder.
    """
    if destination.is_dir():
        raise InputError(f"A file was expected to write to, {destination} is a folder.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = destination.with_name(f".{destination.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", newline="\n")
    unfinished.replace(destination)
    return destination
