"""The two texts in which an Ascend artifact names its gears. Pure.

input_shape   feats:-1,-1,80;mask:-1,-1      -1 for each axis that differs between gears
dynamic_dims  1,106,1,25;1,206,1,50          one group per gear, a value per -1 in order
"""

from __future__ import annotations

SHOWN = 4
"""Inputs of a gear that messages show."""


def parse_gears(
    input_shape: str, dynamic_dims: str
) -> tuple[tuple[str, ...], tuple[tuple[tuple[int, ...], ...], ...]]:
    """Read both texts: names of the inputs, and per gear the shape of each.

    Raises:
        ValueError: A group has too few or too many values, or the text has another syntax.
    """
    names: list[str] = []
    patterns: list[tuple[int, ...]] = []
    for part in input_shape.strip('"').split(";"):
        name, _, sizes = part.rpartition(":")
        names.append(name)
        patterns.append(tuple(int(size) for size in sizes.split(",")))
    wanted = sum(pattern.count(-1) for pattern in patterns)
    gears: list[tuple[tuple[int, ...], ...]] = []
    for group in dynamic_dims.strip('"').split(";"):
        values = [int(value) for value in group.split(",") if value]
        if len(values) != wanted:
            raise ValueError(f"gear {group!r} has {len(values)} values, expected {wanted}")
        left = iter(values)
        gears.append(
            tuple(tuple(next(left) if s == -1 else s for s in pattern) for pattern in patterns)
        )
    return tuple(names), tuple(gears)


def show_shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    """One gear for messages, e.g. `1x106x80 1x25`; of many inputs the first ones."""
    shown = " ".join("x".join(str(size) for size in shape) for shape in shapes[:SHOWN])
    return shown if len(shapes) <= SHOWN else f"{shown} ..."
