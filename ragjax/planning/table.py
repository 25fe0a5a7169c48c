"""A plan as a person reads it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ragjax.planning.slice_plan import Plan


def print_plan(plan: Plan) -> None:
    """Shows a plan."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in rows(plan):
        table.add_row(*row)
    Console(highlight=False).print(table)


def rows(plan: Plan) -> list[tuple[str, str, str]]:
    """What a figure is of, the figure, and what there is to say of it."""
    layout = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    found = [
        ("chips", f"{plan.chips:,}", f"{plan.topology or 'of no kind'}, {layout}"),
        ("parameters, student", f"{plan.student_parameters:,}", ""),
        ("parameters, teacher", f"{plan.teacher_parameters:,}", ""),
        ("tokens a step", f"{plan.tokens_per_step:,}", ""),
    ]
    found += [(f"a chip holds: {name}", _gb(size), "") for name, size in plan.held._asdict().items()]
    if plan.other_bytes is not None:
        found.append(("a chip holds: activations, others", _gb(plan.other_bytes), ""))
    refused = plan.compiled is not None and plan.compiled.traffic is None
    found.append(
        (f"a chip holds: {'at least' if refused else 'all'}", _gb(plan.bytes_per_chip), _verdict(plan))
    )
    share = plan.model_flops_per_token / plan.program_flops_per_token
    found += [
        (
            "operations a token",
            _giga(plan.model_flops_per_token),
            "3 forward passes of the student, 1 of the teacher",
        ),
        ("the program's", _giga(plan.program_flops_per_token), f"of which {share:.0%} are those"),
    ]
    if plan.compiled and plan.compiled.traffic:
        for kind, (count, size) in sorted(plan.compiled.traffic.collectives.items()):
            found.append((f"{kind}, a step", f"{count:,}", f"{_gb(size)} a chip"))
    if plan.seconds is not None:
        note = f"collectives apart; {plan.share_of_peak:.0%} of the chips' peak"
        found.append(("a step by the compiler's estimate", f"{plan.seconds:.3g} s", note))
    return found


def _verdict(plan: Plan) -> str:
    if plan.memory is None:
        return "without activations"
    said = {True: "fits", False: "does not fit", None: "without activations"}[plan.fits]
    return f"of {plan.memory / 1e9:.0f} GB: {said}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _giga(flops: float) -> str:
    return f"{flops / 1e9:.4g} GFLOP"
