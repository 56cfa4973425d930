"""The table of faults in docs/operations.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table_rows() -> list[str]:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("## What it survives\n")[2]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def test_every_fault_names_a_test_that_exists() -> None:
    files = {path.stem: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    files["real"] = files["test_real_model"]
    rows = table_rows()
    assert len(rows) >= 25
    for row in rows:
        proofs = row.rstrip(" |").rpartition(" | ")[2]
        for proof in proofs.split("; "):
            module, *tests = re.findall(r"\w+", proof)
            assert module in files, row
            for test in tests:
                assert f"def test_{test}(" in files[module], f"{module}: no test_{test}"
