"""Figures of a run -> one self-contained HTML page."""

from ragjax.report.page import write_report

__all__ = ["write_report"]
