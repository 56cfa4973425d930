"""`docs/ascend.md` names commands, options and variants that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from voiced.daemon.cli import app
from voiced.engine.build.mindspore.ascend_config import VARIANTS, Aoe, Chip, Tuning

PAGE = (Path(__file__).parents[2] / "docs" / "ascend.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The words of each `voiced` command of the page."""
    blocks = re.sub(r"\\\n\s*", "", PAGE)
    return [
        shlex.split(line.strip(), comments=True)[1:]
        for line in blocks.splitlines()
        if line.startswith("    voiced ")
    ]


def test_the_page_shows_every_step_as_a_command() -> None:
    shown = {" ".join(words[:2]) for words in commands()}
    assert {"model build", "model convert", "selftest --backend"} <= shown
    assert {words[0] for words in commands()} == {"model", "plan", "selftest"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_takes_the_options_that_it_is_shown_with(words: list[str]) -> None:
    group = get_command(app)
    names = []
    for word in words:
        found = getattr(group, "commands", {}).get(word)
        if found is None:
            break
        names.append(word)
        group = found
    help_text = CliRunner().invoke(app, [*names, "--help"]).output
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", help_text), f"{names} has no {option}"


def test_the_page_lists_the_variants_and_the_chips() -> None:
    for variant in VARIANTS:
        assert f"| `{variant.name}`" in PAGE
    for chip in Chip:
        assert f"`{chip}`" in PAGE
    tuned = next(variant for variant in VARIANTS if variant.aoe is not Aoe.OFF)
    assert tuned.aoe is Aoe.TOOL
    assert "subgraphs, then operators" in PAGE
    assert tuple(Tuning) == (Tuning.SUBGRAPH, Tuning.OPERATOR)


def test_the_page_says_plainly_that_no_card_has_run_it() -> None:
    assert "Nobody has run this on a card yet" in PAGE
    assert "not run: no Ascend device" in PAGE
    steps = re.findall(r"^## \d\. (.+)$", PAGE, flags=re.MULTILINE)
    assert len(steps) == 7
    assert all("tested" in step or "from the documents" in step for step in steps)
