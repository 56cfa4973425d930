"""A machine with systemd as PID 1: a container on an overlay of this one, up in a second.

Everything of this machine is there, read-only; what the container writes goes into a folder of its
own. Whatever happens, the container is ended and the overlay unmounted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests import needs

DEADLINE_S = 60.0
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "dbus-daemon": "dbus",
    "systemd-analyze": "systemd",
}
ASKS_FOR_REBOOT = 133
"""Exit status of systemd-nspawn whose container wants to be started again."""
SCRATCH = Path("/var/tmp")
"""On a disk: an overlay needs extended attributes, and a machine hundreds of MB."""
SYSTEM_PYTHON = Path("/usr/bin/python3")
"""Of the installed product: one that a unit with ProtectHome may read."""


def missing() -> str | None:
    """Say why this machine can boot no container; None where it can."""
    if os.geteuid() != 0:
        return "booting a container needs root"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed (apt: {package})"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed"
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, check=False).returncode:
        return f"{SYSTEM_PYTHON} is no Python 3.11 or newer"
    return None


def require() -> None:
    """Skip the test where no container can be booted; fail where it must be possible."""
    if reason := missing():
        needs.missing("BOOT", reason)


class Container:
    """One machine; off until `boot`."""

    def __init__(self, root: Path, *, binds: Mapping[Path, str] | None = None) -> None:
        self.root = root
        """Its file system, seen from here; write to it while it is off."""
        self._binds = dict(binds or {})
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._log = root.parent / "console.log"

    # ---- power -----------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on and wait until every unit has started."""
        with self._log.open("ab") as log:
            self._nspawn = subprocess.Popen(
                [
                    "systemd-nspawn",
                    f"--directory={self.root}",
                    f"--machine=voiced-test-{os.getpid()}",
                    "--register=no",
                    "--keep-unit",
                    "--private-network",
                    "--console=passive",
                    *(f"--bind-ro={here}:{there}" for here, there in self._binds.items()),
                    "--boot",
                    "systemd.unit=multi-user.target",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait_for("the boot", self._is_up)

    def reboot(self) -> None:
        """Restart it in order and wait until it is up again."""
        assert self._nspawn is not None
        self.run("systemctl", "reboot", check=False)
        assert self._nspawn.wait(DEADLINE_S) == ASKS_FOR_REBOOT, self.console[-2000:]
        self.boot()

    def cut_power(self) -> None:
        """Switch it off from one moment to the next."""
        assert self._nspawn is not None
        leader = self._leader()
        self._nspawn.kill()
        self._nspawn.wait(DEADLINE_S)
        if leader is not None:  # PID 1 takes every process of its machine along
            with contextlib.suppress(ProcessLookupError):
                os.kill(leader, signal.SIGKILL)
            deadline_s = time.monotonic() + DEADLINE_S
            while Path(f"/proc/{leader}").exists() and time.monotonic() < deadline_s:
                time.sleep(0.01)
        self._nspawn = None

    def close(self) -> None:
        """Switch it off if it is on; never raises for a machine that is gone."""
        if self._nspawn is not None:
            self.cut_power()

    def _leader(self) -> int | None:
        """The container's PID 1 as seen from here."""
        assert self._nspawn is not None
        pid = self._nspawn.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, f"the container ended:\n{self.console[-2000:]}"
        if self._leader() is None:
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    # ---- use -------------------------------------------------------------------------------

    @property
    def console(self) -> str:
        """What was written on the console of every boot."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def command(self, *words: str) -> list[str]:
        """The words that run `words` inside, from here."""
        return [
            "nsenter",
            f"--target={self._leader()}",
            *["-m", "-u", "-i", "-n", "-p", "-C"],
            *words,
        ]

    def run(
        self, *words: str, check: bool = True, timeout_s: float = DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"},
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}\n"
                + self.journal()[-6000:]
            )
        return done

    def start_process(self, *words: str) -> subprocess.Popen[str]:
        """Begin a command inside; its output is a pipe."""
        return subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        told = self.run("systemctl", "show", unit, "-p", ",".join(properties)).stdout
        return dict(line.split("=", 1) for line in told.splitlines())

    def journal(self, *options: str) -> str:
        """The log of this boot, of `-u UNIT` alone and the like."""
        if self._nspawn is None or self._leader() is None:
            return self.console
        self.run("journalctl", "--sync", check=False)
        return self.run("journalctl", "-b", "--no-pager", "-o", "cat", *options, check=False).stdout

    def write(self, path: str, text: str) -> None:
        """Write a file inside, on or off."""
        if self._nspawn is None:
            file = self.root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        self.run("mkdir", "-p", str(Path(path).parent))
        subprocess.run(
            self.command("tee", path), input=text, text=True, check=True, capture_output=True
        )

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        """Wait until the condition holds; the deadline is what counts."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            if result := condition():
                return result
            time.sleep(0.05)
        log = self.journal()[-6000:] if self._nspawn is not None else ""
        raise AssertionError(f"no {what} within {DEADLINE_S} s\n{log}")


@contextlib.contextmanager
def machine(
    *, files: Mapping[str, str] | None = None, binds: Mapping[Path, str] | None = None
) -> Iterator[Container]:
    """A container that is off: this machine with `files` on top, and `binds` seen read-only.


    Units that this machine has enabled are not started in it.
    """
    with tempfile.TemporaryDirectory(prefix="voiced-boot-", dir=SCRATCH) as name:
        folder = Path(name)
        upper, work, root = folder / "upper", folder / "work", folder / "root"
        for each in (upper, work, root):
            each.mkdir()
        options = f"lowerdir=/,upperdir={upper},workdir={work}"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(root)],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            needs.missing("BOOT", f"no overlay of this machine: {mounted.stderr.strip()}")
        container = Container(root, binds=binds)
        try:
            for wanted in (root / "etc/systemd/system").glob("*.wants"):
                shutil.rmtree(wanted)
            for path, text in (files or {}).items():
                container.write(path, text)
            yield container
        finally:
            container.close()
            subprocess.run(["umount", "--lazy", str(root)], check=False)


def product_machine(
    product: Path,
    files: Mapping[str, str],
    *,
    binds: Mapping[Path, str] | None = None,
) -> contextlib.AbstractContextManager[Container]:
    """A container that is off, with what `make install` put into `product`."""
    units = (product / "etc/systemd/system").iterdir()
    return machine(
        files={f"/etc/systemd/system/{unit.name}": unit.read_text() for unit in units}
        | dict(files),
        binds={product / "opt/voiced": "/opt/voiced", **(binds or {})},
    )


def run_make(checkout: Path, target: str, *arguments: str) -> str:
    """Run make with the system's Python, as on the machine of a user."""
    done = subprocess.run(
        ["make", "--no-print-directory", target, *arguments],
        cwd=checkout,
        env={**os.environ, "VOICED_PYTHON": str(SYSTEM_PYTHON)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, file=sys.stderr)
    return done.stdout
