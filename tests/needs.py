"""What a test needs and a machine may lack."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(kind: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where it must run: with `VOICED_REQUIRE_<kind>=1`."""
    variable = f"VOICED_REQUIRE_{kind}"
    if os.environ.get(variable) == "1":
        pytest.fail(f"{variable}=1, but {reason}")
    pytest.skip(reason)
