"""The report of a folder as one HTML file."""

from __future__ import annotations

from pathlib import Path

from ragjax.report import frontier, method, pruning, sections
from ragjax.report.document import document, write_document
from ragjax.report.read import Run, read_run
from ragjax.report.verdict import headline
from ragjax.report.words import grouped


def write_report(run: Path, destination: Path | None = None) -> Path:
    """Writes the report of a finished run, or of a pruning, as one self-contained HTML file.

    It reads the files of the folder and nothing else. What was not recorded is left out.

    Args:
      run: folder of a run, with `summary.json` and where written `metrics.jsonl`, `config.json`,
        `masks.json`, `samples.json`, `bench.json`; or what `ragjax prune` or `ragjax sensitivity` wrote.
      destination: file to write; none: `report.html` in the folder.

    Returns:
      The file that was written.

    Raises:
      InputError: the folder holds no summary of a finished run, and nothing of a pruning.
    """
    folder = Path(run)
    found = pruning.read_pruning(folder)
    text = page(read_run(folder)) if found is None else pruning.page(found)
    return write_document(text, Path(destination or folder / "report.html"))


def page(run: Run) -> str:
    """The whole page of a run as HTML."""
    return document(
        title=f"{headline(run)} · {run.folder.resolve().name}",
        name=run.folder.resolve().name,
        top=sections.top(run),
        parts={
            "models": ("Figures", sections.compared(run)),
            "trade": ("Trade-off", sections.trade(run)),
            "frontier": ("Frontier", frontier.frontier(run)),
            "learning": ("Learning", sections.learned(run)),
            "zeros": ("Zeros", sections.zeros(run)),
            "samples": ("Samples", sections.samples(run)),
            "use": ("Use it", method.use(run)),
            "method": ("Method", method.method(run)),
            "run": ("The run", method.details(run)),
        },
        footer=_footer(run),
    )


def _footer(run: Run) -> str:
    version = run.summary.get("ragjax")
    lines = sum(len(entries) for entries in run.metrics.values())
    return (
        f"Written by ragjax{'' if version is None else f' {version}'} from the files of this run"
        f"{f' and {grouped(lines)} logged steps' if lines else ''}. This page loads nothing from anywhere."
    )
