"""The tables of faults and of attacks name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def table_rows(name: str, heading: str) -> list[str]:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize(
    ("page", "heading", "least"),
    [("operations.md", "What it survives", 25), ("security.md", "Who might do what", 10)],
)
def test_every_fault_names_a_test_that_exists(page: str, heading: str, least: int) -> None:
    files = {path.stem: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    files["real"] = files["test_real_model"]
    rows = table_rows(page, heading)
    assert len(rows) >= least
    for row in rows:
        proofs = row.rstrip(" |").rpartition(" | ")[2]
        for proof in proofs.split("; "):
            module, *tests = re.findall(r"\w+", proof)
            assert module in files, row
            for test in tests:
                assert f"def test_{test}(" in files[module], f"{module}: no test_{test}"
