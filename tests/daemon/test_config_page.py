"""`docs/configuration.md` and the settings' models say the same."""

from __future__ import annotations

import re
from pathlib import Path

from voiced.daemon.config import KEYS, show, value_of
from voiced.daemon.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_lists_every_key_with_its_default_and_meaning() -> None:
    rows: dict[str, tuple[str, str]] = {}
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"### \[([\w.]+)\]", line):
            section = heading[1]
        elif row := re.fullmatch(r"\| `(\w+)` \| `(.*)` \| .* \| (.*) \|", line):
            rows[f"{section}.{row[1]}"] = (row[2], row[3])
    expected = {
        name: (show(value_of(Settings(), name)), key.field.description)
        for name, key in KEYS.items()
    }
    assert rows == expected


def test_every_setting_has_a_description_that_ends_like_a_sentence() -> None:
    for name, key in KEYS.items():
        assert (key.field.description or "").endswith("."), name
