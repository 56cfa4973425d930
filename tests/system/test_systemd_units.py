"""The units are what `systemd-analyze` accepts without a word."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.needs import missing

from voiced.daemon.settings import Settings

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
SOCKET = FOLDER / "voiced.socket"
EXPOSURE = 15
"""Most that `systemd-analyze security` may count, times ten."""
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.usefixtures("analyze")


@pytest.fixture(scope="module")
def analyze() -> None:
    """The program that judges units is here."""
    if ANALYZE is None:
        missing("BOOT", "systemd-analyze is not installed")


def copy_units(folder: Path, *, change: tuple[str, str] = ("", "")) -> list[Path]:
    """Copy the units, with a program that exists and an instance of the template."""
    copies = []
    for unit in [*UNITS, SOCKET]:
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/usr/bin/true", unit.read_text(), flags=re.M)
        copy = folder / unit.name.replace("@.", "@print.")
        copy.write_text(text.replace(*change) if change[0] else text)
        copies.append(copy)
    return copies


def verify(units: list[Path]) -> tuple[int, str]:
    assert ANALYZE is not None
    result = subprocess.run(
        [ANALYZE, "verify", *map(str, units)], capture_output=True, text=True, timeout=60
    )
    return result.returncode, result.stderr


@needs_systemd
def test_verify_is_silent(tmp_path: Path) -> None:
    assert len(UNITS) == 2
    assert SOCKET.is_file()
    assert verify(copy_units(tmp_path)) == (0, "")


@needs_systemd
def test_verify_would_have_said_something(tmp_path: Path) -> None:
    units = copy_units(tmp_path, change=("RestartSec=", "RestartSeconds="))
    status, said = verify(units)
    assert status == 0  # which is why only an empty stderr counts
    assert "RestartSeconds" in said


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_the_exposure_is_low(unit: Path, tmp_path: Path) -> None:
    assert ANALYZE is not None
    copies = {copy.name: copy for copy in copy_units(tmp_path)}
    copy = copies[unit.name.replace("@.", "@print.")]
    result = subprocess.run(
        [ANALYZE, "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout[-200:] + result.stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_every_exposure_that_is_left_is_explained_in_the_unit(unit: Path, tmp_path: Path) -> None:
    assert ANALYZE is not None
    copies = {copy.name: copy for copy in copy_units(tmp_path)}
    copy = copies[unit.name.replace("@.", "@print.")]
    result = subprocess.run(
        [ANALYZE, "security", "--offline=true", "--json=short", "--no-pager", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    left = [row["name"] for row in json.loads(result.stdout) if row["exposure"]]
    explained = unit.read_text().partition("still counts, and why:")[2]
    assert left
    for name in left:  # "PrivateNetwork=", "RestrictAddressFamilies=~AF_UNIX"
        key, _, value = name.partition("=")
        word = value.strip("~").replace("(INET|INET6)", "INET6") if "AF_" in value else key
        assert word in explained, f"{unit.name} says nothing about {name}"


def test_the_socket_has_the_port_that_is_the_default() -> None:
    listens = re.findall(r"^ListenStream=(.+)$", SOCKET.read_text(), flags=re.M)
    server = Settings().server
    assert listens == [f"{server.host}:{server.port}", "/run/voiced.sock"]


def test_the_units_start_commands_that_exist() -> None:
    from voiced.daemon.cli import app, plugins_app

    commands = {command.name for command in app.registered_commands}
    plugin_commands = {command.name for command in plugins_app.registered_commands}
    for unit in UNITS:
        (words,) = re.findall(r"^ExecStart=/opt/voiced/bin/voiced (.*)$", unit.read_text(), re.M)
        first, *rest = words.split()
        assert first in commands or (first == "plugins" and rest[0] in plugin_commands)


def test_the_daemon_may_open_a_file_for_every_stream_with_room_to_spare() -> None:
    (unit,) = [unit for unit in UNITS if unit.name == "voiced.service"]
    (limit,) = re.findall(r"^LimitNOFILE=(\d+)$", unit.read_text(), flags=re.M)
    assert int(limit) >= 8 * Settings().server.max_streams + 512
