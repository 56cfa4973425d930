"""Every error of a package stands in the tree that its module shows, with its code."""

from __future__ import annotations

import importlib
import re

import pytest

LINE = re.compile(r"^[│├└─ ]*(\w+) +(\w+):|^[│├└─ ]+(\w+) +(\w+)$", re.MULTILINE)


@pytest.mark.parametrize("package", ["audio", "engine"])
def test_the_tree_shows_every_error_with_its_code(package: str) -> None:
    module = importlib.import_module(f"voiced.{package}.errors")
    assert module.__doc__ is not None
    shown = {match[1] or match[3]: match[2] or match[4] for match in LINE.finditer(module.__doc__)}
    (base,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__bases__ == (Exception,)
    )
    kinds = [
        kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, base)
    ]
    assert shown == {kind.__name__: kind.code for kind in kinds if kind is not base}
    assert len({kind.code for kind in kinds}) == len(kinds)
