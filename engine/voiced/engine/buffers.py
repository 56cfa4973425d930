"""Buffers that are allocated once and lent out: no allocation while the engine runs.

All gears share one arena per tensor, sized for the largest; a gear's tensors are views into it.
Sharing is safe because one thread runs one batch at a time, and the lease enforces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import TracebackType

import numpy as np
import numpy.typing as npt

from voiced.engine.errors import LeaseError
from voiced.engine.types import Gear

Float = npt.NDArray[np.float32]
Shapes = Mapping[str, tuple[int, ...]]


class Lease:
    """The tensors of one gear, on loan. Use as a context manager or call `release`."""

    def __init__(self, pool: BufferPool, gear: Gear, arrays: dict[str, Float]) -> None:
        self._pool = pool
        self.gear = gear
        self._arrays: dict[str, Float] | None = arrays

    def __getitem__(self, name: str) -> Float:
        """The tensor `name`, float32 in the gear's shape; contents are what the last user left.

        Raises:
            LeaseError: The lease was already returned.
        """
        if self._arrays is None:
            raise LeaseError(f"buffer {name} of gear {self.gear} was used after its return")
        return self._arrays[name]

    def release(self) -> None:
        """Give the tensors back.

        Raises:
            LeaseError: They were already given back.
        """
        if self._arrays is None:
            raise LeaseError(f"buffers of gear {self.gear} were returned twice")
        self._arrays = None
        self._pool.returned()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class BufferPool:
    """One arena per tensor name; views per gear are made once, in the constructor."""

    def __init__(self, shapes: Mapping[Gear, Shapes]) -> None:
        sizes: dict[str, int] = {}
        for tensors in shapes.values():
            for name, shape in tensors.items():
                sizes[name] = max(sizes.get(name, 0), prod(shape))
        arenas = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
        self._views = {
            gear: {name: arenas[name][: prod(s)].reshape(s) for name, s in tensors.items()}
            for gear, tensors in shapes.items()
        }
        self.nbytes = sum(arena.nbytes for arena in arenas.values())
        """Memory held, whatever is lent."""
        self._lent: Gear | None = None

    def lease(self, gear: Gear) -> Lease:
        """Lend the gear's tensors.

        Raises:
            LeaseError: Another lease is still out, or the gear was not planned for.
        """
        if self._lent is not None:
            raise LeaseError(f"buffers are still lent to gear {self._lent}")
        if gear not in self._views:
            raise LeaseError(f"no buffers were planned for gear {gear}")
        self._lent = gear
        return Lease(self, gear, self._views[gear])

    def returned(self) -> None:
        """Note that the lease came back; called by the lease itself."""
        self._lent = None
