"""The Debian package on a booted machine without a network: install, upgrade, remove, purge."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.conftest import CHECKOUT, CLIENT, FAKE
from tests.boot.container import SCRATCH, Container, machine
from tests.boot.test_service import is_answering, pid_of, say, texts
from tests.needs import missing

pytestmark = pytest.mark.boot

UPGRADE = "9.0.0"
FOLDER = "/opt/packages"
LARGE = ("onnxruntime", "onnx", "av", "av.libs", "opencc", "tests", "pygments", "hatchling")


@pytest.fixture(scope="module")
def packages(product: Path) -> Iterator[list[Path]]:
    """This version and one that is newer, made of the product's environment less what is large.

    The fake model needs none of it, and the whole is 340 MB for every copy.
    """
    if shutil.which("dpkg-deb") is None:
        missing("BOOT", "dpkg-deb is not installed")
    with tempfile.TemporaryDirectory(prefix="voiced-packages-", dir=SCRATCH) as folder:
        small = Path(folder, "small")
        shutil.copytree(
            product / "opt/voiced",
            small,
            symlinks=True,
            copy_function=os.link,
            ignore=shutil.ignore_patterns(*LARGE),
        )
        for version in ({}, {"DEB_VERSION": UPGRADE}):
            subprocess.run(
                ["tools/make-deb", folder],
                cwd=CHECKOUT,
                env={
                    **os.environ,
                    "DEB_VENV": str(small),
                    "DEB_COMPRESSION": "none",
                    "TMPDIR": str(SCRATCH),
                    **version,
                },
                check=True,
                capture_output=True,
                timeout=300,
            )
        found = sorted(Path(folder).glob("*.deb"))
        assert len(found) == 2
        Path(folder).chmod(0o755)
        yield found


@pytest.fixture(scope="module")
def car(packages: list[Path]) -> Iterator[Container]:
    """A booted machine that has never seen voiced."""
    binds = {packages[0].parent: FOLDER}
    with machine(files={"/opt/voiced-test/client.py": CLIENT}, binds=binds) as container:
        assert not (container.root / "opt/voiced/bin").exists()
        assert not (container.root / "etc/voiced").exists()
        container.boot()
        yield container


def dpkg(car: Container, *arguments: str) -> str:
    """Change the packages; prints what the scripts said."""
    done = car.run("dpkg", "--force-unsafe-io", *arguments, timeout_s=180)
    return done.stdout + done.stderr


def exists(car: Container, path: str) -> bool:
    return car.run("test", "-e", path, check=False).returncode == 0


def test_the_package_is_installed_upgraded_removed_and_purged(
    car: Container, packages: list[Path]
) -> None:
    first, second = (f"{FOLDER}/{package.name}" for package in packages)

    # Installed: nothing is started, and the doctor says what is missing.
    said = dpkg(car, "-i", first)
    assert re.search(r"(?m)^  fail  model ", said), said
    assert "voiced model pull whisper-base" in said
    assert "systemctl enable --now voiced.socket voiced.service" in said
    assert car.run("voiced", "config", "check").returncode == 0
    assert car.show("voiced", "ActiveState", "LoadState") == {
        "LoadState": "loaded",
        "ActiveState": "inactive",
    }
    assert "voiced-clients" in car.run("getent", "group", "voiced-clients").stdout

    # Used.
    car.write("/etc/voiced/voiced.toml", FAKE)
    car.run("systemctl", "enable", "--now", "voiced.socket", "voiced", "voiced-plugin@jsonl")
    mode = car.run("stat", "-c", "%a %G", "/run/voiced.sock").stdout.split()
    assert mode == ["660", "voiced-clients"]
    kept = "/var/lib/voiced-plugins/jsonl/said.jsonl"

    def is_kept() -> bool:
        assert texts(say(car, "/run/voiced.sock")) == ["one"]
        return exists(car, kept)

    car.wait_for("the plugin's file", is_kept)

    # Upgraded: the settings and what was kept stay, the daemon is the new one.
    old = pid_of(car)
    dpkg(car, "-i", second)
    assert car.run("dpkg-query", "-W", "-f", "${Version}", "voiced").stdout == UPGRADE
    assert car.run("cat", "/etc/voiced/voiced.toml").stdout == FAKE
    car.wait_for("the new daemon", lambda: is_answering(car) and pid_of(car) != old)
    car.wait_for("the plugin", lambda: pid_of(car, "voiced-plugin@jsonl"))
    assert exists(car, kept)
    assert texts(say(car)) == ["one"]

    # Removed: no program, no unit, no process; settings and data stay.
    dpkg(car, "-r", "voiced")
    assert not exists(car, "/opt/voiced")
    assert car.show("voiced", "LoadState")["LoadState"] == "not-found"
    assert car.run("pgrep", "-f", "/opt/voiced", check=False).stdout == ""
    assert exists(car, "/etc/voiced/voiced.toml")
    assert exists(car, kept)
    assert car.run("systemctl", "--failed", "--quiet").stdout == ""

    # Purged: nothing is left.
    dpkg(car, "-P", "voiced")
    for path in ("/etc/voiced", "/var/lib/voiced", "/var/lib/private/voiced", kept):
        assert not exists(car, path)
    left = car.run("find", "/etc/systemd", "/lib/systemd", "-name", "*voiced*").stdout
    assert left == ""


def test_the_package_holds_no_path_of_the_machine_that_built_it(packages: list[Path]) -> None:
    listed = subprocess.run(
        ["dpkg-deb", "--contents", packages[0]], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[5] for line in listed.splitlines()]
    assert "./opt/voiced/bin/voiced" in names
    programs = {Path(name).name for name in names if name.startswith("./opt/voiced/bin/")}
    assert {name for name in programs if not name.startswith("python")} <= {"", "bin", "voiced"}
    open_to_all = [line for line in listed.splitlines() if line[0] != "l" and line[8] == "w"]
    assert open_to_all == []
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        taken = ("./opt/voiced/bin", "./opt/voiced/pyvenv.cfg", "*/voiced-*.dist-info/*")
        command = ["dpkg-deb", "--fsys-tarfile", str(packages[0])]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as archive:
            untar = ["tar", "-x", "--wildcards", "-C", folder, *taken]
            subprocess.run(untar, stdin=archive.stdout, check=True, timeout=60)
        for path in Path(folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert str(CHECKOUT) not in path.read_text(encoding="utf-8", errors="replace")
