"""A model's parameters as a decoding step reads them fastest."""

from __future__ import annotations

import threading
import weakref
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ragjax.kernels.large_pages import LargePages
from ragjax.kernels.machine import kernels_serve
from ragjax.kernels.norm import RowNorm
from ragjax.models.decoder import JOINT, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.linear import ACTIVE
from ragjax.models.norm import IN_PRODUCT
from ragjax.models.panels import Activating, Active, Panels, panel_kernel, panel_table
from ragjax.models.stand_ins import Table, is_stand_in


class Network(NamedTuple):
    """A model as the loops over new tokens take it."""

    params: Params
    """For the embedding, the last norm and the head, and to read prompts: layers stacked, or as below."""
    layers: tuple[Params, ...]
    """The parameters of each layer by themselves."""

    @property
    def for_steps(self) -> Network:
        """Without what only prompts are read with: handing an array over costs the host time, read or not."""
        return Network({name: part for name, part in self.params.items() if name != "layers"}, self.layers)


def laid_out(params: Params, *, config: DecoderConfig, mesh: jax.sharding.Mesh | None = None) -> Network:
    """The network of `params`.

    Where panels serve, matrices and the table are laid out in panels on the first call: a second copy of the
    weights, which lives as long as all of `params` do. Elsewhere layers are taken apart at each call.

    Args:
      params: with stacked layers, placed on the mesh if there is one.
      config: the architecture.
      mesh: devices that share the weights; none: one device.
    """
    if mesh is not None or not _fit_panels(params):
        return Network(params, unstack(params, config=config))
    layers, table = _kept_panels(params, config)
    # A token's row lies in one piece in a table that is not in panels, tied or not.
    return Network(params | {"layers": layers, "head": table}, layers)


@partial(jax.jit, static_argnames="config")
def unstack(params: Params, *, config: DecoderConfig) -> tuple[Params, ...]:
    """The parameters of each layer as arrays of their own.

    A slice of the stacked ones would be copied at every step of the decoding loop.
    """
    return tuple(jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(config.layers))


def _fit_panels(params: Params) -> bool:
    """Whether all but stand-ins is float32, on the CPU, and panels serve."""
    named = jax.tree.leaves(params, is_leaf=is_stand_in)
    placed = filter(_settled, jax.tree.leaves(params))
    return (
        kernels_serve()
        and all(is_stand_in(x) or x.dtype == jnp.float32 for x in named)
        and all(device.platform == "cpu" for x in placed for device in x.devices())
    )


@partial(jax.jit, static_argnames="config")
def _layer_in_panels(stacked: Params, i: int, *, config: DecoderConfig) -> Params:
    def laid(path: Any, leaf: Any) -> Any:
        if is_stand_in(leaf):
            return leaf.in_panels()
        return panel_kernel(leaf) if path[-1].key == "kernel" else leaf

    layer = jax.tree.map(lambda x: x[i], stacked)
    layer = jax.tree_util.tree_map_with_path(laid, layer, is_leaf=is_stand_in)
    attention, mlp = _joined(layer["attention"]), layer["mlp"]
    if not config.gated:
        mlp = _active(mlp, config.activation)
    layer |= {"attention": _ending(attention, "out"), "mlp": _ending(mlp, "down")}
    return _beginning(layer, config)


def _joined(attention: Params) -> Params:
    """Attention whose queries, keys and values come of one product, where their panels can stand together."""
    parts = [attention[name] for name in JOINT]
    first, *others = (part["kernel"] for part in parts)
    if not isinstance(first, Panels) or any(type(other) is not type(first) for other in others):
        return attention
    kernel = first.beside(others)
    if kernel is None:
        return attention
    joint: Params = {"kernel": kernel}
    if "bias" in parts[0]:
        joint["bias"] = jnp.concatenate([part["bias"] for part in parts])
    return {name: part for name, part in attention.items() if name not in JOINT} | {"joint": joint}


def _active(mlp: Params, activation: str) -> Params:
    """An MLP whose first product ends in the activation, where it can."""
    made = _ended(mlp["up"], activation)
    return mlp if made is None else {ACTIVE: made, "down": mlp["down"]}


def _ending(module: Params, adds: str) -> Params:
    """A module whose products end in their biases, where they can, and one also in what it is added to."""

    def ending(name: str, part: Any) -> Any:
        made = _ended(part, "linear") if name in (adds, "joint") or "bias" in part else None
        return part if made is None else {ACTIVE: made}

    return {name: part if name == ACTIVE else ending(name, part) for name, part in module.items()}


def _beginning(layer: Params, config: DecoderConfig) -> Params:
    """A layer whose norms are the beginning of what reads them, where that is one product and can."""
    if config.residual == "post_norm":
        return layer
    attention, mlp = layer["attention"], layer["mlp"]
    joint = _begun(attention.get("joint", {}), layer["attention_norm"], config)
    active = _begun(mlp, layer["mlp_norm"], config)
    if joint is not None:
        layer |= {"attention": attention | {"joint": joint}, "attention_norm": {IN_PRODUCT: ()}}
    if active is not None:
        layer |= {"mlp": mlp | active, "mlp_norm": {IN_PRODUCT: ()}}
    return layer


def _begun(projection: Params, norm: Params, config: DecoderConfig) -> Params | None:
    """A projection that begins in the norm of its inputs; none where it cannot."""
    if ACTIVE not in projection:
        return None
    made = projection[ACTIVE].after(RowNorm(norm["scale"], norm.get("bias"), config.norm_epsilon))
    return None if made is None else {ACTIVE: made}


def _ended(projection: Params, activation: str) -> Active | None:
    """A projection that ends in its bias and an activation; none where it cannot."""
    kernel = projection["kernel"]
    return kernel.active(projection.get("bias"), activation) if isinstance(kernel, Activating) else None


@partial(jax.jit, static_argnames="vocab_size")
def _table_in_panels(table: Any, *, vocab_size: int) -> Table:
    """The rows of tokens alone: scores of what fills up a vocabulary would be cut off at every step."""
    assert all(len(leaf) == len(jax.tree.leaves(table)[0]) for leaf in jax.tree.leaves(table)), "by rows"
    real = jax.tree.map(lambda x: x[:vocab_size], table)
    return real.in_panels() if is_stand_in(real) else panel_table(real)


class _Kept(NamedTuple):
    """Panels of parameters, all of whose arrays are alive."""

    layers: tuple[Params, ...]
    table: Table
    ends: list[weakref.finalize]
    """Of each array: what forgets the panels with the first of them that goes."""


_KEPT: dict[tuple[Any, ...], _Kept] = {}
"""By the config, the tree of the parameters, and the identities of its arrays."""
_KEEPING = threading.Lock()


def _kept_panels(params: Params, config: DecoderConfig) -> tuple[tuple[Params, ...], Table]:
    leaves, tree = jax.tree.flatten(params)
    key = config, tree, *map(id, leaves)
    with _KEEPING:
        if key in _KEPT:
            return _KEPT[key].layers, _KEPT[key].table
        made = _panels(params, config)
        if all(map(_settled, (*leaves, *jax.tree.leaves(made)))):
            _KEPT[key] = _Kept(*made, [weakref.finalize(leaf, _forget, key) for leaf in leaves])
        return made


def _settled(x: Any) -> bool:
    """Whether a value stays what it is: NumPy's may change, and what is traced is of its program alone."""
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)


def _forget(key: tuple[Any, ...]) -> None:
    kept = _KEPT.pop(key, None)
    for end in kept.ends if kept else ():
        end.detach()


def _panels(params: Params, config: DecoderConfig) -> tuple[tuple[Params, ...], Table]:
    table = params["head"] if "head" in params else params["embedding"]["tokens"]
    pages = LargePages()
    layers = tuple(
        pages.hold(_layer_in_panels(params["layers"], i, config=config)) for i in range(config.layers)
    )
    return layers, pages.hold(_table_in_panels(table, vocab_size=config.vocab_size))
