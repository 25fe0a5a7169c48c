"""Rotary positions in config.json: in `rope_parameters`, or as older files spell them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ragjax.interchange.fields import COUNT, Field, Kind, is_real
from ragjax.models.decoder_config import Rotary, RotaryScaling

ROTARY_FIELDS = frozenset({"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"})
"""Names in config.json that `read_rotary` reads."""

_POSITIVE = Kind("a number above 0", lambda v: is_real(v) and 0 < v < math.inf)
_SHARE = Kind("a number above 0 and at most 1", lambda v: is_real(v) and 0 < v <= 1)

_FACTOR = {"factor": Field("factor", _POSITIVE, None)}
_SCALINGS: dict[str, dict[str, Field]] = {
    "default": {},
    "linear": _FACTOR,
    "dynamic": _FACTOR,
    "llama3": _FACTOR
    | {
        "low_freq_factor": Field("low_frequency_factor", _POSITIVE, None),
        "high_freq_factor": Field("high_frequency_factor", _POSITIVE, None),
        "original_max_position_embeddings": Field("original_positions", COUNT, None),
    },
}
"""What each rope_type has fields for."""


class FoundRotary(NamedTuple):
    """What a config.json says of rotary positions."""

    base: float
    share: float
    """Of a head's values, how much is turned."""
    scaling: RotaryScaling | None
    problems: list[str]
    """Complaints that name the field."""

    def rotary(self, head_width: int) -> Rotary:
        """As an architecture has it, for heads of `head_width`."""
        return Rotary(self.base, None if self.share == 1 else int(head_width * self.share), self.scaling)


def read_rotary(
    values: Mapping[str, Any],
    *,
    theta: tuple[str, ...] = ("rope_theta",),
    share: tuple[str, ...] = ("partial_rotary_factor",),
    default_share: float = 1.0,
) -> FoundRotary:
    """Reads the rotary positions of a config.json; what it leaves out is as transformers has it.

    Args:
      values: config.json.
      theta: names of the base outside of `rope_parameters`.
      share: names of the share of a head outside of `rope_parameters`.
      default_share: the share where none is stated.
    """
    group = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    stated, problems = _stated(
        values, dict.fromkeys(theta, "rope_theta") | dict.fromkeys(share, "partial_rotary_factor")
    )
    where, kind = stated.pop("rope_type", ("", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        problems.append(f"{where}: expected one of {', '.join(_SCALINGS)}, found {kind!r}")
        return FoundRotary(1.0, 1.0, None, problems)
    defaults: dict[str, Any] = {"original_max_position_embeddings": values.get("max_position_embeddings")}
    fields = {
        "rope_theta": Field("base", _POSITIVE, 10000.0),
        "partial_rotary_factor": Field("share", _SHARE, default_share),
        **_SCALINGS[kind],
    }
    found: dict[str, Any] = {}
    for name, field in fields.items():
        where, value = stated.pop(name, (f"{group}.{name}", defaults.get(name, field.default)))
        if field.kind.accepts(value):
            found[field.ours] = value if field.kind is COUNT else float(value)
        else:
            problems.append(f"{where}: expected {field.kind.expected}, found {value!r}")
    problems += [f"{where}: rope_type {kind!r} has no such field" for where, _ in stated.values()]
    base, turned = found.pop("base", 1.0), found.pop("share", 1.0)
    if kind == "llama3" and not problems and found["low_frequency_factor"] >= found["high_frequency_factor"]:
        problems.append(f"{group}: high_freq_factor must be greater than low_freq_factor")
    scaling = None if kind == "default" or problems else RotaryScaling(kind, **found)
    return FoundRotary(base, turned, scaling, problems)


def _stated(
    values: Mapping[str, Any], outside: dict[str, str]
) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """Each field that is stated, wherever that is: its full name and its value; and what contradicts."""
    stated: dict[str, tuple[str, Any]] = {}
    problems = []
    said = [(name, main, values.get(name)) for name, main in outside.items()]
    for group in ("rope_parameters", "rope_scaling"):
        inside = values.get(group)
        if inside is not None and not isinstance(inside, dict):
            problems.append(f"{group}: expected an object or null, found {inside!r}")
            continue
        for name, value in (inside or {}).items():
            said.append((f"{group}.{name}", "rope_type" if name == "type" else name, value))
    for where, main, value in said:
        if value is None:
            continue
        before, first = stated.setdefault(main, (where, value))
        if first != value:
            problems.append(f"{where}: {before} says {first!r}, this says {value!r}")
    return stated, problems


def rotary_values(rotary: Rotary) -> dict[str, Any]:
    """The fields of config.json for positions that turn whole heads, as new and older transformers read."""
    scaling = rotary.scaling
    kind = "default" if scaling is None else scaling.kind
    stated = {name: getattr(scaling, field.ours) for name, field in _SCALINGS[kind].items()}
    return {
        "rope_parameters": {"rope_type": kind, "rope_theta": rotary.base, **stated},
        "rope_theta": rotary.base,
        "rope_scaling": None if scaling is None else {"rope_type": kind, **stated},
    }
