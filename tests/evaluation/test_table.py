from rich.console import Console

from ragjax.evaluation import Figures
from ragjax.evaluation.table import print_figures


def test_models_stand_side_by_side():
    teacher = Figures(30.0, 1.0, 1e3, 10, 124_439_808, 124_439_808, 0.0, 0.0, 497_759_232, 50.0, None, 12)
    student = Figures(33.5, 1.1, 2e3, 10, 81_912_576, 60_000_000, 0.5, 0.25, 327_650_304, 90.0, 1.8, 6)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_figures({"teacher": teacher, "student": student}, console)
    text = console.export_text()
    for shown in ("teacher", "student", "124,439,808", "33.50", "50.00%", "1.80 times", "327.7 MB"):
        assert shown in text
