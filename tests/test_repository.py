"""What no tracked file may hold, and what the pinned lists must."""

from __future__ import annotations

import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LISTS = ("constraints.txt", "constraints-peers.txt", "constraints-peers-live.txt")

INDEX_HOST = re.compile(r"\b(?:pypi|pythonhosted)\.org\b|://(?!127\.)\S+/simple\b", re.IGNORECASE)
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:home|root|work|Users|tmp|mnt)/[\w.-]+")

NAMES_THE_PATTERNS = {"tests/test_repository.py"}
EXAMPLE_PATHS = {"/tmp/voiced", "/home/user", "/home/me", "/home/ann"}
"""Invented paths of tests and pages."""

SPLIT_BY_PYTHON = {
    ("av", "18.1.0", "19.0.2"),
    ("numpy", "2.4.6", "2.5.5"),
}
"""Pinned in two versions, of which only that for 3.11 is tested in CI: what stands here was tested
with 3.13, too (CONTRIBUTING.md, "Dependencies")."""


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def texts() -> dict[str, str]:
    found = {}
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        if name not in NAMES_THE_PATTERNS:
            found[name] = path.read_text(encoding="utf-8")
    return found


def test_no_tracked_file_names_an_index_host() -> None:
    wrong = [
        f"{name}: {match.group()}"
        for name, text in texts().items()
        for match in INDEX_HOST.finditer(text)
    ]
    assert wrong == []


def test_no_tracked_file_names_a_path_of_somebodys_machine() -> None:
    wrong = [
        f"{name}: {match.group()}"
        for name, text in texts().items()
        for match in MACHINE_PATH.finditer(text)
        if match.group() not in EXAMPLE_PATHS
    ]
    assert wrong == []


def test_no_lock_file_that_records_hosts_is_tracked() -> None:
    names = {path.name for path in tracked_files()}
    assert "pyproject.toml" in names
    assert names.isdisjoint({"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock"})


def blocks(name: str) -> dict[str, str]:
    """Requirement line → its hash lines, of one pinned list."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found: dict[str, str] = {}
    requirement = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.startswith(" "):
            requirement = line
            assert requirement not in found, f"{name}: {requirement} twice"
            found[requirement] = ""
        else:
            found[requirement] += line + "\n"
    return found


def pinned_names(name: str) -> set[str]:
    return {requirement.partition("==")[0] for requirement in blocks(name)}


@pytest.mark.parametrize("name", LISTS)
def test_every_pinned_package_has_one_version_and_hashes(name: str) -> None:
    found = blocks(name)
    assert found
    for requirement, hashes in found.items():
        assert re.match(r"[a-z0-9-]+==[\w.!+]+( ; .+)? \\$", requirement), requirement
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", hashes), requirement


def test_no_list_repeats_anything_of_another() -> None:
    for one, other in itertools.combinations(LISTS, 2):
        assert not set(blocks(one)) & set(blocks(other)), (one, other)


def declared(*requirements: str) -> set[str]:
    """Normalised names (PEP 503) of requirements."""
    names = (re.split(r"[\s<>=!~;\[]", each, maxsplit=1)[0] for each in requirements)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_everything_declared_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    runtime_part, _, dev_part = text.partition("\n# dev\n")
    assert dev_part, "constraints.txt has no line `# dev`, by which tools/make-venv splits it"

    needed = declared(*project["project"]["dependencies"], *groups["build"])
    missing = {name for name in needed if f"\n{name}==" not in runtime_part}
    assert not missing
    main, peers, live = (pinned_names(name) for name in LISTS)
    assert declared(*groups["dev"]) <= main
    assert declared(*groups["peers"]) <= main | peers
    assert declared(*groups["peers-live"]) <= main | peers | live


def test_what_differs_between_pythons_was_tested_on_the_newer_ones() -> None:
    """PyAV 19, pinned for 3.12 and newer, once failed on every file while 3.11 passed all tests."""
    found = set()
    for name in LISTS:
        pins: dict[str, list[str]] = {}
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if match := re.match(r"([\w.-]+)==(\S+) ; .*python_full_version", line):
                pins.setdefault(match[1], []).append(match[2])
        found |= {(package, *each) for package, each in pins.items() if len(each) > 1}
    assert found == SPLIT_BY_PYTHON
