"""How fast models write, measured in turns, beside what the machine's memory allows."""

from ragjax.benchmark.kept import keep, run_of
from ragjax.benchmark.measure import bench
from ragjax.benchmark.report import Measured, Report, print_report

__all__ = ["Measured", "Report", "bench", "keep", "print_report", "run_of"]
