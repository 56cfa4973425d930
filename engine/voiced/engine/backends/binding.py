"""What may be bound to a graph: the same rules, and the same words, for every backend. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from voiced.engine.backends.base import Bindable, Tensors
from voiced.engine.errors import BackendFailed


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a graph says about one of its inputs or outputs."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    """None for an axis that the graph leaves open."""

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if n is None else str(n) for n in self.shape)}]"

    def fits(self, tensor: Bindable) -> bool:
        """Say whether type and axes are those of the graph."""
        found = tensor.shape
        if tensor.dtype != self.dtype or len(found) != len(self.shape):
            return False
        return self.shape == found or all(map(_fits_axis, self.shape, found))


def _fits_axis(wanted: int | None, found: int) -> bool:
    return wanted is None or wanted == found


Specs = Mapping[str, TensorSpec]


def check_binding(
    wanted_inputs: Specs, wanted_outputs: Specs, inputs: Tensors, outputs: Tensors
) -> None:
    """Check that memory fits a graph and that no output shares memory with anything else.

    Raises:
        BackendFailed: It does not; the message names the tensor, what was found and expected.
    """
    _check_side("input", wanted_inputs, inputs)
    _check_side("output", wanted_outputs, outputs)
    _check_aliases(inputs, outputs)


def host_bytes(tensors: Iterable[Bindable]) -> int:
    """Bytes of the host arrays among `tensors`: what crosses at every run."""
    return sum(t.nbytes for t in tensors if isinstance(t, np.ndarray))


def check_same(name: str, spec: TensorSpec, array: np.ndarray) -> None:
    """Check that `array` can be written to a device tensor.

    Raises:
        BackendFailed: Shape or type differ.
    """
    if not spec.fits(array):
        raise BackendFailed(f"{name}: found {describe(array)}, expected {spec}")


def describe(tensor: Bindable) -> str:
    """Type and shape as messages show them, e.g. `float32[1, 80]`."""
    return f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _check_side(side: str, wanted: Specs, given: Tensors) -> None:
    for name in given:
        if name not in wanted:
            known = ", ".join(wanted)
            raise BackendFailed(f"graph has no {side} {name!r}; expected {known}")
    for name, spec in wanted.items():
        if name not in given:
            raise BackendFailed(f"{side} {name!r} is not bound; expected {spec}")
        tensor = given[name]
        if not spec.fits(tensor):
            raise BackendFailed(f"{side} {name!r}: found {describe(tensor)}, expected {spec}")
        if isinstance(tensor, np.ndarray) and not tensor.flags.c_contiguous:
            raise BackendFailed(f"{side} {name!r} must be C-contiguous to be bound")


def _check_aliases(inputs: Tensors, outputs: Tensors) -> None:
    tensors: dict[int, str] = {id(t): n for n, t in inputs.items() if not _is_array(t)}
    for name, tensor in outputs.items():
        if not _is_array(tensor):
            if (other := tensors.get(id(tensor))) is not None:
                raise _aliased(name, other)
            tensors[id(tensor)] = name
    spans = []
    for side, is_output in ((inputs, False), (outputs, True)):
        for name, tensor in side.items():
            if isinstance(tensor, np.ndarray) and tensor.nbytes:
                # a third of the time that `ctypes.data` takes
                start = tensor.__array_interface__["data"][0]
                spans.append((start, start + tensor.nbytes, name, is_output))
    spans.sort()
    # Only neighbours need a look, as long as the furthest ends of inputs and outputs are kept.
    ends: dict[bool, tuple[int, str]] = {False: (0, ""), True: (0, "")}
    for start, end, name, is_output in spans:
        for other_is_output, (other_end, other) in ends.items():
            if start < other_end and (is_output or other_is_output):
                output, second = (name, other) if is_output else (other, name)
                raise _aliased(output, second)
        ends[is_output] = max(ends[is_output], (end, name))


def _is_array(tensor: Bindable) -> bool:
    return isinstance(tensor, np.ndarray)


def _aliased(output: str, other: str) -> BackendFailed:
    return BackendFailed(
        f"output {output!r} shares memory with {other!r}; expected memory of its own"
    )
