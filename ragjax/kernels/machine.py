"""Machine code for this processor, made from LLVM's text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ragjax.kernels.vectors_text import declared_once

_KNOWN = (3, 4, 5)
"""Minor versions of XLA's interface 0.x whose structs are those of `interface.ll`."""
_OLDEST = (0, 45)
"""Version of llvmlite whose LLVM reads the text."""
_LIVING: dict[str, Any] = {}
"""Owners of code that others know by its address, by name."""


class Vectors(NamedTuple):
    """Of float32, in a processor's registers."""

    lanes: int
    """Values in one."""
    registers: int
    """How many there are."""


@cache
def interface() -> int | None:
    """Minor version of XLA's interface for custom calls; none: not one that is spoken here."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    if not header.exists():
        return None
    version = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text()))
    major, minor = int(version.get("MAJOR", -1)), int(version.get("MINOR", -1))
    return minor if major == 0 and minor in _KNOWN else None


def compiles() -> bool:
    """Whether LLVM is there, and new enough."""
    try:
        found = metadata.version("llvmlite")
    except metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in re.findall(r"\d+", found)[:2]) >= _OLDEST


@cache
def vectors() -> Vectors:
    """The vectors of this processor."""
    has = _features()
    if has.get("avx512f"):
        return Vectors(16, 32)
    if has.get("avx"):
        return Vectors(8, 16)
    return Vectors(4, 32 if has.get("neon") else 16)


def architecture() -> str:
    """What code is made for, as LLVM names it: "x86_64", say."""
    import llvmlite.binding as llvm

    return llvm.get_default_triple().split("-")[0]


@cache
def has_dot_product() -> bool:
    """Whether the processor adds up products of integers of 8 bits, sixteen times four at once."""
    return bool(vectors().lanes == 16 and _features().get("avx512vnni"))


@cache
def has_halves() -> bool:
    """Whether the processor makes floats of 32 bits of those of 16."""
    features = _features()
    return bool(features.get("f16c") or features.get("neon"))


def kernels_serve() -> bool:
    """Whether XLA can call such code: on CPU, with `llvmlite`, by an interface of XLA's that is known."""
    return jax.default_backend() == "cpu" and compiles() and interface() is not None


def compiled(name: str, text: str, functions: Sequence[str], *, improve: bool = True) -> list[int]:
    """The addresses of functions of a module, compiled for this processor and kept as long as Python runs.

    Args:
      name: under which it is kept, in the place of what had the name before.
      text: the module, as LLVM reads it.
      functions: their names.
      improve: whether LLVM improves the text, which takes it most of its time.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = _features()
    if features.get("avx512f"):
        # A vector of 512 bits is one register, whatever LLVM holds to be quicker in general.
        features["prefer-256-bit"] = False
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=",".join(f"{'+' if on else '-'}{feature}" for feature, on in features.items()),
        opt=3,
    )
    module = llvm.parse_assembly(declared_once(text))
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    # Without, functions are still put in place where the text asks for it.
    level = llvm.create_pipeline_tuning_options(speed_level=2 if improve else 0)
    builder = llvm.create_pass_builder(machine, level)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _LIVING[name] = engine
    addresses = [engine.get_function_address(function) for function in functions]
    assert all(addresses)
    return addresses


def _features() -> dict[str, bool]:
    import llvmlite.binding as llvm

    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell them of every processor
        return {}
