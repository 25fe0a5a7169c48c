"""Names of parameters: where they stand in their tree."""

from __future__ import annotations

from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """The '/'-joined name of an array in a tree.

    Args:
      path: from `jax.tree_util.tree_leaves_with_path` or its kin.

    Example:
      >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"layers": {"mlp": {"kernel": 1}}})
      >>> path_name(path)
      'layers/mlp/kernel'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")
