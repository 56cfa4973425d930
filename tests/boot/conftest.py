"""The installed product, made once, and a booted machine for the tests of one module."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.container import SCRATCH, Container, product_machine, require, run_make

CHECKOUT = Path(__file__).parents[2]
CLIENT = (Path(__file__).parent / "client.py").read_text(encoding="utf-8")
FAKE = """
[engine]
model = "fake"
[vad]
kind = "webrtc"
[plugins.jsonl]
path = "/var/lib/voiced-plugins/jsonl/said.jsonl"
"""
UNLIMITED = "[Unit]\nStartLimitIntervalSec=0\n"
"""Tests restart the daemon more often than a machine that lives for years may."""


FILES = {
    "/etc/voiced/voiced.toml": FAKE,
    "/etc/systemd/system/voiced.service.d/test.conf": UNLIMITED,
    "/opt/voiced-test/client.py": CLIENT,
}
"""Of a machine with the fake model."""


@pytest.fixture(scope="session")
def product() -> Iterator[Path]:
    """What `make install` puts on a machine."""
    require()
    with tempfile.TemporaryDirectory(prefix="voiced-product-", dir=SCRATCH) as folder:
        run_make(CHECKOUT, "install", f"DESTDIR={folder}")
        yield Path(folder)


@pytest.fixture(scope="module")
def car(product: Path) -> Iterator[Container]:
    """A booted machine with the product on it, and the fake model."""
    with product_machine(product, FILES) as container:
        container.boot()
        yield container
