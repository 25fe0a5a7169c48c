"""LLVM's text of attention to keys and values in buffers: `attention.ll`, and its lines of vectors."""

from __future__ import annotations

import math
from pathlib import Path
from string import Template

from ragjax.kernels.exponential import exponential
from ragjax.kernels.vectors_text import LINE, all_lanes, constant, plus_product


def attention_text(head: int, lanes: int, *, small: bool, holds: bool) -> str:
    """A kernel that attends.

    Args:
      head: width of a head, a multiple of `lanes`.
      lanes: values in a vector.
      small: keys and values are integers of 8 bits, with a scale each.
      holds: new ones come with the queries, and are put into the buffers, which are results.
    """
    assert not (small and holds)
    element, vector = "i8" if small else "float", f"<{lanes} x float>"

    def each(*lines: str) -> str:
        """The lines for each vector of a head, with its number in place of #, and of the one before for ~."""
        numbers = ["none", *map(str, range(head // lanes))]
        pairs = zip(numbers[1:], numbers, strict=False)
        return "\n".join(
            f"  {line}".replace("#", this).replace("~", before) for this, before in pairs for line in lines
        )

    def loaded(name: str) -> str:
        place = f"%{name}.at.# = getelementptr <{lanes} x {element}>, ptr %{name}.at, i64 #"
        if not small:
            return each(place, f"%{name}.# = load {vector}, ptr %{name}.at.#, align 4")
        return each(
            place,
            f"%{name}.codes.# = load <{lanes} x i8>, ptr %{name}.at.#, align 1",
            f"%{name}.# = sitofp <{lanes} x i8> %{name}.codes.# to {vector}",
        )

    def fetched(name: str) -> str:
        lines = range(0, head * (1 if small else 4), LINE)
        return "\n".join(
            f"  %{name}.line.{line} = getelementptr i8, ptr %{name}.ahead, i64 {line}\n"
            f"  call void @llvm.prefetch.p0(ptr %{name}.line.{line}, i32 0, i32 2, i32 1)"
            for line in lines
        )

    def stored(name: str, value: str) -> str:
        return each(
            f"%{name}.to.# = getelementptr {vector}, ptr %out, i64 #",
            f"store {vector} {value}, ptr %{name}.to.#, align 4",
        )

    def sums_of(to: str, x: str, y: str, total: str) -> str:
        return each(plus_product(to, x, y, total, lanes))

    own = Template(Path(__file__).with_name("attention.ll").read_text()).substitute(
        head=head, head_bytes=4 * head, lanes=lanes, element=element,
        # What begins with a semicolon is a comment.
        holds="" if holds else "; ", heads="%heads" if holds else "%row.heads", at="%at" if holds else "null",
        buffers="result" if holds else "argument", key=1 if holds else 3, value=2 if holds else 4,
        last=head // lanes - 1, hidden=constant(-math.inf),
        all_hidden=all_lanes(constant(-math.inf), lanes), scales=_SCALES if small else _NO_SCALES,
        load_query=each(
            f"%query.at.# = getelementptr {vector}, ptr %query, i64 #",
            f"%query.# = load {vector}, ptr %query.at.#, align 4",
        ),
        load_key=loaded("key"),
        multiply=f"  %sum.none = fadd {vector} zeroinitializer, zeroinitializer\n"
        + sums_of("%sum.#", "%query.#", "%key.#", "%sum.~"),
        scale_key=_SCALE_KEY if small else "", scaled_key="%scaled.key" if small else "%scaled",
        exp=exponential(lanes),
        carry=each(f"%mix.# = phi {vector} [ zeroinitializer, %totals ], [ %mixed.#, %mix.on ]"),
        fetch_value=fetched("value"), fetch_key=fetched("key"),
        scale_weight=_SCALE_WEIGHT if small else "", scaled_weight="%scaled.weight" if small else "%weight",
        load_value=loaded("value"),
        mix=sums_of("%mixed.#", "%weight.all", "%value.#", "%mix.#"),
        divide=each(f"%done.# = fdiv {vector} %mixed.#, %whole.all"),
        store_mixed=stored("mixed", "%done.#"), store_zeros=stored("zero", "zeroinitializer"),
    )  # fmt: skip
    return own


_NO_SCALES = """
  ; null
  %key.scales = getelementptr i8, ptr null, i64 0
  %value.scales = getelementptr i8, ptr null, i64 0"""
_SCALES = """
  %key.scales.buffer = call ptr @argument(ptr %frame, i64 5)
  %key.scales = call ptr @data(ptr %key.scales.buffer)
  %value.scales.buffer = call ptr @argument(ptr %frame, i64 6)
  %value.scales = call ptr @data(ptr %value.scales.buffer)"""
_SCALE_KEY = """
  %key.scale.at = getelementptr float, ptr %key.scales, i64 %key.now
  %key.scale = load float, ptr %key.scale.at
  %scaled.key = fmul float %scaled, %key.scale"""
_SCALE_WEIGHT = """
  %value.scale.at = getelementptr float, ptr %value.scales, i64 %value.now
  %value.scale = load float, ptr %value.scale.at
  %scaled.weight = fmul float %weight, %value.scale"""
