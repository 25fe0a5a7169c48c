"""The report as one HTML file that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from string import Template

from ragjax.errors import InputError
from ragjax.report import method, sections
from ragjax.report.markup import Markup, escaped, joined, tag
from ragjax.report.read import Run, read_run
from ragjax.report.verdict import headline
from ragjax.report.words import grouped

_HERE = Path(__file__).parent


def write_report(run: Path, destination: Path | None = None) -> Path:
    """Writes the report of a finished run as one self-contained HTML file.

    It reads the files of the run folder and nothing else. What a run did not record is left out.

    Args:
      run: folder of a run, with `summary.json` and where written `metrics.jsonl`, `config.json`,
        `masks.json`, `samples.json`.
      destination: file to write; none: `report.html` in the run folder.

    Returns:
      The file that was written.

    Raises:
      InputError: the folder holds no summary of a finished run.
    """
    text = page(read_run(Path(run)))
    destination = Path(destination or Path(run) / "report.html")
    if destination.is_dir():
        raise InputError(f"A file was expected to write to, {destination} is a folder.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = destination.with_name(f".{destination.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", newline="\n")
    unfinished.replace(destination)
    return destination


def page(run: Run) -> str:
    """The whole page of a run as HTML."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "models": ("Figures", sections.compared(run)),
        "trade": ("Trade-off", sections.trade(run)),
        "learning": ("Learning", sections.learned(run)),
        "zeros": ("Zeros", sections.zeros(run)),
        "samples": ("Samples", sections.samples(run)),
        "use": ("Use it", method.use(run)),
        "method": ("Method", method.method(run)),
        "run": ("The run", method.details(run)),
    }
    shown = {name: part for name, part in parts.items() if part[1] is not None}
    links = (tag("a", title, href=f"#{name}") for name, (title, _) in shown.items())
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escaped(f"{headline(run)} · {run.folder.resolve().name}"),
        script_hash=digest,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        name=escaped(run.folder.resolve().name),
        links=joined(links),
        top=sections.top(run),
        sections=joined(section for _, section in shown.values()),
        footer=escaped(_footer(run)),
        script=Markup(script),
    )


def _footer(run: Run) -> str:
    version = run.summary.get("ragjax")
    lines = sum(len(entries) for entries in run.metrics.values())
    return (
        f"Written by ragjax{'' if version is None else f' {version}'} from the files of this run"
        f"{f' and {grouped(lines)} logged steps' if lines else ''}. This page loads nothing from anywhere."
    )
