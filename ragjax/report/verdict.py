"""What the figures of a run say, in plain words, also where they disappoint."""

from __future__ import annotations

from ragjax.report.read import Figures, Run
from ragjax.report.words import change, decimal, in_bytes, listed, percent, times

EVEN_SPEED = 0.02
"""Relative difference in speed below which two models count as equally fast."""
EVEN_QUALITY = 0.001
"""Relative difference in perplexity below which two models count as equally good."""


def headline(run: Run) -> str:
    """The result in one line: size, speed, quality."""
    teacher, student = run.models["teacher"], run.models["student"]
    parts = []
    size = change(student.get("stored_bytes"), teacher.get("stored_bytes"))
    if size is not None:
        parts.append("the same size" if abs(size) < 0.005 else f"{percent(abs(size))} {_size_word(size)}")
    speed = speed_ratio(run)
    if speed is not None:
        parts.append("no faster" if is_even_speed(run) else f"{times(speed)} times as fast")
    worse = change(student.get("perplexity"), teacher.get("perplexity"))
    if worse is None:
        parts.append("quality not measurable")
    elif abs(worse) < EVEN_QUALITY:
        parts.append("the same perplexity")
    elif worse > 1:
        parts.append(f"{times(1 + worse)} times the perplexity")
    else:
        parts.append(f"{percent(abs(worse))} {'higher' if worse > 0 else 'lower'} perplexity")
    line = ", ".join(parts)
    return line[0].upper() + line[1:]


def sentences(run: Run) -> list[str]:
    """The verdict: quality, size, speed, and what distillation itself was worth."""
    teacher, student = run.models["teacher"], run.models["student"]
    found = [_quality(teacher, student), _size(teacher, student), _speed(run), _distillation(run)]
    scratch = run.models.get("scratch", {}).get("perplexity")
    if scratch is not None:
        found.append(f"A model of the same shape trained from a random start ends at {decimal(scratch)}.")
    return [sentence for sentence in found if sentence]


def distillation_gain(run: Run) -> float | None:
    """Perplexity of the control less the student's: above 0 where the teacher's loss helped."""
    control = run.models.get("control", {}).get("perplexity")
    student = run.models["student"].get("perplexity")
    return None if control is None or student is None else control - student


def speed_ratio(run: Run, name: str = "student") -> float | None:
    """Speed of a model as a multiple of the teacher's."""
    ratio = run.models[name].get("speed_vs_teacher")
    if ratio is None:
        faster = change(
            run.models[name].get("tokens_per_second"), run.models["teacher"].get("tokens_per_second")
        )
        ratio = None if faster is None else 1 + faster
    return ratio


def round_ratios(run: Run, name: str = "student") -> list[float]:
    """Speed as a multiple of the teacher's in each round; empty where rounds were not recorded."""
    own, teachers = run.rounds.get(name, []), run.rounds["teacher"]
    return [a / b for a, b in zip(own, teachers, strict=True) if b] if len(own) == len(teachers) else []


def is_even_speed(run: Run, name: str = "student") -> bool:
    """Whether the difference in speed is too small to be claimed, or has no constant sign."""
    ratio, ratios = speed_ratio(run, name), round_ratios(run, name)
    return ratio is None or abs(ratio - 1) < EVEN_SPEED or bool(ratios and min(ratios) < 1 < max(ratios))


def _size_word(size: float) -> str:
    return "smaller" if size < 0 else "larger"


def _quality(teacher: Figures, student: Figures) -> str:
    theirs, own = teacher.get("perplexity"), student.get("perplexity")
    if own is None:
        return "The student’s perplexity is missing or not finite: this student cannot be used."
    if theirs is None:
        return (
            f"The student’s perplexity is {decimal(own)}; "
            f"the teacher’s is missing or not finite, so nothing can be said about what was lost."
        )
    worse = change(own, theirs) or 0.0
    if abs(worse) < EVEN_QUALITY:
        judgement = "no measurable loss"
    elif worse > 1:
        judgement = f"{times(1 + worse)} times as high"
    elif worse > 0:
        judgement = f"{percent(worse)} worse"
    else:
        judgement = f"{percent(-worse)} better"
    return (
        f"On held-out text the student’s perplexity is {decimal(own)} against {decimal(theirs)}: {judgement}."
    )


def _size(teacher: Figures, student: Figures) -> str | None:
    clauses: list[str] = []
    own, theirs = student.get("stored_bytes"), teacher.get("stored_bytes")
    size = change(own, theirs)
    if size is not None:
        sizes = f"{in_bytes(own)} against {in_bytes(theirs)}"
        if abs(size) < 0.005:
            clauses.append(f"takes as many bytes as its teacher ({sizes})")
        else:
            clauses.append(f"takes {percent(abs(size))} {'fewer' if size < 0 else 'more'} bytes ({sizes})")
    layers, of = student.get("layers"), teacher.get("layers")
    if layers and of and layers != of:
        clauses.append(f"has {layers:.0f} of the teacher’s {of:.0f} layers")
    sparsity = student.get("sparsity_prunable")
    if sparsity:
        clauses.append(f"has {percent(sparsity)} of its prunable weights at zero")
    if not clauses:
        return None
    return f"It {listed(clauses)}."


def _speed(run: Run) -> str | None:
    ratio = speed_ratio(run)
    if ratio is None:
        return None
    if is_even_speed(run):
        ratios = round_ratios(run)
        spread = f"; rounds from {times(min(ratios))} to {times(max(ratios))}" if ratios else ""
        measured = f"{times(ratio)} times as fast{spread}"
        return f"It reads text no faster than the teacher on this machine ({measured})."
    if ratio < 1:
        return (
            f"It is slower than the teacher on this machine: it reads text at {times(ratio)} times the speed."
        )
    return f"It reads text {times(ratio)} times as fast as the teacher on this machine."


def _distillation(run: Run) -> str:
    gain = distillation_gain(run)
    if gain is None:
        if "control" in run.models:
            return (
                "What distillation itself contributed is unknown: the control has no comparable perplexity."
            )
        return "No control was trained, so what distillation itself contributed is unknown."
    control = run.models["control"]["perplexity"]
    alike = "the control, trained the same way without the teacher,"
    if abs(gain) < EVEN_QUALITY * control:
        return f"Distillation itself made no measurable difference: {alike} ends at {decimal(control)}."
    if gain < 0:
        better = f"is better by {decimal(-gain)} perplexity ({decimal(control)})"
        return f"Distillation did not pay here: {alike} {better}."
    return f"Distillation itself is worth {decimal(gain)} perplexity: {alike} ends at {decimal(control)}."
