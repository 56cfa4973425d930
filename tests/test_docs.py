"""The documents are true where a program can tell: links resolve, commands parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from typer.main import get_command

from voiced.daemon.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "[a-z]*/*.md", "docs/*/*.md")
    for path in ROOT.glob(pattern)
)

FENCE = re.compile(r"^( *)```.*?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(
    r"^ *(?:\$ |# or: )?(?:[A-Z_]+=\S+ )*(?:\S*/)?voiced ((?!:)\S.*)$", re.MULTILINE
)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The names under which GitHub lets one link to the headings of a page."""
    names = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        names.add(plain.strip().replace(" ", "-"))
    return names


def commands(text: str) -> Iterator[str]:
    """Everything on a page that is typed as `voiced …`: lines of blocks, indented lines, spans."""
    text = re.sub(r"\\\n *", "", text)  # a line that goes on in the next
    for block in FENCE.finditer(text):
        for line in COMMAND.finditer(block[2]):
            yield line[1]
    rest = prose(text)
    for line in re.findall(r"^    .*$", rest, re.MULTILINE):
        yield from (found[1] for found in COMMAND.finditer(line))
    for span in SPAN.finditer(rest):
        yield from (found[1] for found in COMMAND.finditer(" ".join(span[1].split())))


def check(line: str) -> None:
    """Hold one command line, written as usage or as an example, to the real command line."""
    words = [word.strip("[]().,…") for word in shlex.split(line.replace("'", ""), comments=True)]
    words = [word for word in words if word]
    command: Any = get_command(app)
    path = "voiced"
    takes_value = False
    for word in words:
        if word in {"|", "&", "&&", ">", "<", "or", "\\"}:
            return
        if word.startswith("--"):
            name, _, value = word.partition("=")
            options = {
                option: parameter
                for parameter in command.params
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
            known = name in options or name == "--help"
            assert known, f"{path} has no {name}; it has {', '.join(sorted(options))}"
            takes_value = name in options and not options[name].is_flag and not value
        elif takes_value:
            takes_value = False
        elif hasattr(command, "commands"):
            names = word.split("|")  # usage: `voiced plugins list|run`
            for each in names:
                assert each in command.commands, f"{path} has no command {each}"
            command, path = command.commands[names[0]], f"{path} {names[0]}"


def test_every_page_is_found() -> None:
    assert {"README.md", "docs/protocol.md", "docs/decisions/README.md", "audio/README.md"} <= set(
        PAGES
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    wrong = []
    for target in LINK.findall(prose(read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{target}: no such heading")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_one_that_voiced_takes(page: str) -> None:
    for line in commands(read(page)):
        check(line)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    """Paths in code spans that begin with a folder of the repository."""
    folders = "audio|engine|daemon|plugins|bench|tests|docs|systemd|tools|examples"
    named = re.findall(rf"`((?:{folders})/[\w./@-]*\w)`", prose(read(page)))
    here = (ROOT / page).parent
    assert [name for name in named if not ((ROOT / name).exists() or (here / name).exists())] == []


def test_a_wrong_command_line_is_noticed() -> None:
    for line in (
        "runn",
        "run --prot 1",
        "model fetch",
        "plugins list|walk",
        "bench peers DIR --sets X",
    ):
        with pytest.raises(AssertionError, match="has no"):
            check(line)
    check("run --set server.port=1 --no-microphone  # as it is")
    assert list(commands("see `voiced run --pull`,\n```\n$ voiced demo\n```\n")) == [
        "demo",
        "run --pull",
    ]
