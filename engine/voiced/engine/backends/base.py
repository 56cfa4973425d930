"""What a runtime must offer: load a graph, bind memory to it once, run it many times.

Memory is of two kinds. A *host array* belongs to the caller: bound as an input it is read at every
run, as an output it is written at every run. A *device tensor* belongs to the runtime and stays
where it is: only `write` and `read` move its values. `Traffic` counts what crosses between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


@runtime_checkable
class DeviceTensor(Protocol):
    """Memory of the runtime, allocated once. Freed when the last reference and call are gone."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one value."""
        ...

    def write(self, array: npt.NDArray[Any]) -> None:
        """Copy an array of the same shape and type into the tensor.

        Raises:
            BackendFailed: Shape or type differ, or the runtime failed.
        """
        ...

    def read(self) -> npt.NDArray[Any]:
        """Copy the values into a new array, which the caller owns.

        Raises:
            BackendFailed: The runtime failed.
        """
        ...


Bindable = npt.NDArray[Any] | DeviceTensor
Tensors = Mapping[str, Bindable]


@dataclass(slots=True)
class Traffic:
    """Bytes that crossed between host arrays and the runtime since the start; never reset.

    Counted by the kind of memory, also where host and device are one, so that what a test states
    about one backend holds for all.
    """

    to_device: int = 0
    from_device: int = 0

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(self.to_device - earlier.to_device, self.from_device - earlier.from_device)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.to_device + other.to_device, self.from_device + other.from_device)


class Call(Protocol):
    """A graph with all inputs and outputs bound to fixed memory."""

    def run(self) -> None:
        """Read the bound inputs as they are now and overwrite the bound outputs.

        Raises:
            BackendFailed: The runtime refused or failed.
        """
        ...


class Session(Protocol):
    """One loaded graph. Owned by one thread."""

    @property
    def traffic(self) -> Traffic:
        """What its calls and the tensors that it allocated have moved."""
        ...

    def bind(self, inputs: Tensors, outputs: Tensors) -> Call:
        """Bind memory to every input and output of the graph.

        Host arrays must be C-contiguous; the caller keeps them and may rewrite them between runs.
        Device tensors may come from any session of the same backend. No memory may be bound as
        an output and under a second name.

        Raises:
            BackendFailed: A name, shape or type does not fit the graph, or memory is bound twice.
        """
        ...

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> DeviceTensor:
        """Allocate a device tensor of zeros, for this and all other sessions of the backend.

        Raises:
            BackendFailed: The device has no room.
        """
        ...


class Backend(Protocol):
    """A runtime."""

    name: str
    target: str | None
    """Target of `voiced model convert` whose artifacts it runs; None: a bundle's ONNX graphs."""
    compiles_shapes: bool
    """A shape's first run costs more than later ones, so every gear must be warmed by itself."""

    def load(self, path: Path, *, threads: int) -> Session:
        """Load a graph from a bundle's file.

        Raises:
            BackendFailed: The runtime cannot read the file.
        """
        ...


@runtime_checkable
class SharesWorkspace(Protocol):
    """A backend whose graphs can use one workspace in turn."""

    def share_workspace(self, paths: Sequence[Path]) -> bool:
        """Let graphs that never run at the same time share; before they are loaded.

        Returns:
            Whether the runtime can do it.
        """
        ...
