"""What a runtime must offer: load a graph, bind host buffers to it once, run it many times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


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

    def bind(self, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind C-contiguous arrays, which the caller keeps and may rewrite between runs.

        Raises:
            BackendFailed: A name, shape or type does not fit the graph.
        """
        ...


class Backend(Protocol):
    """A runtime."""

    name: str
    compiles_shapes: bool
    """A shape's first run costs more than later ones, so every gear must be warmed by itself."""

    def load(self, path: Path, *, threads: int) -> Session:
        """Load a graph from a bundle's file.

        Raises:
            BackendFailed: The runtime cannot read the file.
        """
        ...
