"""A graph as it is written: nodes in memory, weights straight to the file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ragjax.errors import InputError, listing
from ragjax.interchange.onnx.package import onnx_package
from ragjax.interchange.sweep import is_finite

OPSET, IR_VERSION = 23, 11
"""Of the standard operators, and of the file."""
CONTRIB = "com.microsoft"
"""Domain of the operators that onnxruntime adds."""
_INLINE = 1024
"""Bytes up to which an array stands in the graph itself."""
_ALIGNMENT = 4096
"""Bytes: so that a runtime can map the file into memory."""


class Graph:
    """Nodes, inputs, outputs and constants of a program.

    Values are named by strings. Larger constants are written to `data` at once, one at a time, and the
    graph only says where they stand: protobuf holds no more than 2 GB.
    """

    def __init__(self, data: Path):
        self._onnx = onnx_package()
        self._data, self._file = data, data.open("wb")
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._bad: list[str] = []

    def input(self, name: str, dtype: type[np.generic], shape: list[str | int]) -> str:
        """A value that is fed."""
        self._inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: type[np.generic], shape: list[str | int]) -> None:
        """Hands out the value of this name."""
        self._outputs.append(self._value(name, dtype, shape))

    def constant(self, name: str, values: np.ndarray) -> str:
        """An array that belongs to the program; of one name there is one."""
        if name in self._constants:
            return name
        values = np.ascontiguousarray(values)
        if values.dtype == np.float32 and not is_finite(values):
            self._bad.append(name)
        helper = self._onnx.numpy_helper
        if values.nbytes <= _INLINE:
            self._constants[name] = helper.from_array(values, name)
            return name
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = self._onnx.TensorProto(
            name=name, dims=values.shape, data_type=kind, data_location=self._onnx.TensorProto.EXTERNAL
        )
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        place = {"location": self._data.name, "offset": self._file.tell(), "length": values.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(values.data)
        self._constants[name] = tensor
        return name

    def has(self, name: str) -> bool:
        """Whether there is a constant of this name."""
        return name in self._constants

    def number(self, value: int, dtype: type[np.generic] = np.int64) -> str:
        """A constant of one axis that holds one number."""
        return self.constant(f"{np.dtype(dtype).name}.{value}", np.array([value], dtype))

    def node(
        self, operator: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        """The output of an operator; an input of "" is left out."""
        [output] = self.nodes(operator, *inputs, outputs=[name or self._fresh()], domain=domain, **attributes)
        return output

    def nodes(
        self, operator: str, *inputs: str, outputs: list[str] | int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """The outputs of an operator that has several: so many, or of these names; one of "" is left out."""
        names = [self._fresh(i) for i in range(outputs)] if isinstance(outputs, int) else outputs
        number = f"{operator}.{len(self._nodes)}"
        self._nodes.append(
            self._onnx.helper.make_node(operator, inputs, names, name=number, domain=domain, **attributes)
        )
        return names

    def save(self, path: Path, *, name: str, metadata: dict[str, str]) -> None:
        """Writes the graph, and ends the file beside it.

        Raises:
          InputError: constants are not finite.
        """
        self._file.close()
        if self._bad:
            raise InputError(f"Weights that are not finite:\n{listing(self._bad)}")
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._constants.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets, producer_name="ragjax")
        helper.set_model_props(model, metadata)
        path.write_bytes(model.SerializeToString())
        self._onnx.checker.check_model(path)

    def close(self) -> None:
        """Ends the file of constants, where the graph was not saved."""
        self._file.close()

    def _fresh(self, part: int = 0) -> str:
        return f"v{len(self._nodes)}.{part}"

    def _value(self, name: str, dtype: type[np.generic], shape: list[str | int]) -> Any:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._onnx.helper.make_tensor_value_info(name, kind, shape)
