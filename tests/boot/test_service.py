"""The installed product under a real systemd: started, killed, hung, starved, rebooted."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import needs
from tests.boot.conftest import FILES
from tests.boot.container import Container, product_machine
from tests.system import virtual_microphone

pytestmark = pytest.mark.boot

PYTHON = "/opt/voiced/bin/python"
DROP_IN = "/run/systemd/system/voiced.service.d/{name}.conf"
DYNAMIC_UIDS = range(61_184, 65_520)
"""Of DynamicUser, systemd.exec(5)."""


@pytest.fixture
def service(car: Container) -> Iterator[Container]:
    """A machine on which the daemon has just been started, and nothing of earlier tests is left."""
    yield from started(car)


def started(car: Container) -> Iterator[Container]:
    car.run("systemctl", "start", "voiced")
    try:
        yield car
    finally:
        car.run("systemctl", "stop", "voiced.socket", "voiced", "voiced-plugin@jsonl", check=False)
        car.run("rm", "-rf", "/run/systemd/system/voiced.service.d", "/var/lib/private/voiced/hung")
        car.run("systemctl", "daemon-reload")
        car.run("systemctl", "reset-failed", check=False)


@contextlib.contextmanager
def changed(car: Container, name: str, *lines: str) -> Iterator[None]:
    """A drop-in of the daemon's unit, and the daemon started with it."""
    car.write(DROP_IN.format(name=name), "\n".join(("[Service]", *lines, "")))
    car.run("systemctl", "daemon-reload")
    car.run("systemctl", "restart", "voiced", check=False)
    yield


def client(*arguments: str) -> list[str]:
    return [PYTHON, "/opt/voiced-test/client.py", *arguments]


def messages(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def say(car: Container, target: str = "8765", seconds: str = "2") -> list[dict[str, Any]]:
    """One stream from beginning to end."""
    return messages(car.run(*client(target, seconds)).stdout)


def texts(told: list[dict[str, Any]]) -> list[str]:
    return [message["text"] for message in told if message["type"] == "final"]


def pid_of(car: Container, unit: str = "voiced") -> int:
    return int(car.show(unit, "MainPID")["MainPID"])


def worker_of(car: Container) -> int:
    found = car.run("pgrep", "-f", "voiced.engine.worker", check=False).stdout.split()
    return int(found[0]) if len(found) == 1 else 0


def restarts(car: Container) -> int:
    return int(car.show("voiced", "NRestarts")["NRestarts"])


def is_answering(car: Container) -> bool:
    return car.show("voiced", "ActiveState", "SubState") == {
        "ActiveState": "active",
        "SubState": "running",
    }


def kill(car: Container, number: signal.Signals, pid: int) -> None:
    car.run("kill", f"-{number.name.removeprefix('SIG')}", str(pid))


# ---- what it is --------------------------------------------------------------------------------


def test_ready_means_that_a_stream_is_answered_and_the_status_says_how_it_goes(
    service: Container,
) -> None:
    told = say(service)
    assert not [message for message in told if message["type"] == "refused"]
    assert texts(told) == ["one"]
    status = service.wait_for(
        "the status",
        lambda: (s := service.show("voiced", "StatusText")["StatusText"]) != "ready" and s,
    )
    assert status == "0 of 64 streams; nothing waits; engine ready, fake@00000000"
    assert service.run("systemctl", "--failed", "--quiet").stdout == ""


def test_it_runs_as_a_user_of_its_own_without_a_privilege_in_folders_of_its_own(
    service: Container,
) -> None:
    for pid in (pid_of(service), worker_of(service)):
        facts = dict(
            line.split(":\t", 1)
            for line in service.run("cat", f"/proc/{pid}/status").stdout.splitlines()
            if ":\t" in line
        )
        assert int(facts["Uid"].split()[0]) in DYNAMIC_UIDS
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
        assert facts["NoNewPrivs"] == "1"
        assert facts["Seccomp"] == "2"  # a filter
    for folder in ("/var/lib/voiced/models", "/var/cache/voiced", "/run/voiced"):
        assert int(service.run("stat", "-L", "-c", "%u", folder).stdout) in DYNAMIC_UIDS


def test_its_lines_have_the_journals_priorities(service: Container) -> None:
    kill(service, signal.SIGKILL, worker_of(service))
    lines: list[dict[str, Any]] = service.wait_for(
        "a warning",
        lambda: [
            line
            for line in map(
                json.loads,
                service.run("journalctl", "-u", "voiced", "-o", "json").stdout.splitlines(),
            )
            if "engine worker is replaced" in line["MESSAGE"]
        ],
    )
    assert {line["PRIORITY"] for line in lines} == {"4"}
    assert not any(line["MESSAGE"].startswith("<") for line in lines)


# ---- killed, hung, starved ---------------------------------------------------------------------


def test_a_killed_daemon_is_replaced_with_its_plugins_and_leaves_no_worker(
    service: Container,
) -> None:
    service.run("systemctl", "start", "voiced-plugin@jsonl")
    daemon, worker = pid_of(service), worker_of(service)
    plugin = pid_of(service, "voiced-plugin@jsonl")
    service.run("systemctl", "enable", "voiced-plugin@jsonl")
    try:
        kill(service, signal.SIGKILL, daemon)
        service.wait_for("a restart", lambda: restarts(service) == 1 and is_answering(service))
        assert pid_of(service) != daemon
        assert worker_of(service) not in (0, worker)
        service.wait_for(
            "the plugin", lambda: pid_of(service, "voiced-plugin@jsonl") not in (0, plugin)
        )
        assert texts(say(service)) == ["one"]
    finally:
        service.run("systemctl", "disable", "voiced-plugin@jsonl")


def test_a_killed_worker_is_replaced_by_the_daemon_that_goes_on(service: Container) -> None:
    worker, daemon = worker_of(service), pid_of(service)
    kill(service, signal.SIGKILL, worker)
    service.wait_for("another worker", lambda: worker_of(service) not in (0, worker))
    assert texts(say(service)) == ["one"]
    assert (restarts(service), pid_of(service)) == (0, daemon)


def test_a_frozen_worker_is_replaced_and_the_watchdog_sees_no_fault(service: Container) -> None:
    worker, daemon = worker_of(service), pid_of(service)
    kill(service, signal.SIGSTOP, worker)
    service.wait_for("another worker", lambda: worker_of(service) not in (0, worker))
    assert texts(say(service)) == ["one"]
    assert (restarts(service), pid_of(service)) == (0, daemon)


def test_a_frozen_daemon_is_replaced_by_the_watchdog(service: Container) -> None:
    with changed(service, "watchdog", "WatchdogSec=2", "TimeoutAbortSec=2"):
        daemon = pid_of(service)
        kill(service, signal.SIGSTOP, daemon)
        service.wait_for("a restart", lambda: restarts(service) == 1 and is_answering(service))
        assert "Watchdog timeout (limit 2s)!" in service.journal("-u", "voiced")
        assert pid_of(service) != daemon
        assert texts(say(service)) == ["one"]


HANGS = {
    "bus": "from voiced.daemon.bus import Bus as owner; name = '_beat'",
    "engine": "from voiced.engine.host import EngineHost as owner; name = '_serve'",
}


@pytest.mark.parametrize("part", HANGS)
def test_one_part_that_hangs_while_the_loop_turns_is_named_and_the_daemon_replaced(
    service: Container, part: str
) -> None:
    program = "; ".join(
        (
            "import asyncio, os, sys",
            HANGS[part],
            # The first daemon hangs, the one that replaces it does not.
            "mark = '/var/lib/voiced/hung'",
            "hang = lambda self: asyncio.Event().wait()",
            "not os.path.exists(mark) and (open(mark, 'w').close(), setattr(owner, name, hang))",
            "from voiced.daemon.cli import main",
            "sys.argv = ['voiced', 'run']",
            "main()",
        )
    )
    lines = (
        "WatchdogSec=2",
        "ExecStart=",
        f'ExecStart={PYTHON} -c "{program}"',
    )
    with changed(service, "hang", *lines):
        service.wait_for("a restart", lambda: restarts(service) == 1 and is_answering(service))
        said = service.journal("-u", "voiced")
        assert f"no progress, the watchdog is not fed part={part}" in said
        assert "Watchdog timeout (limit 2s)!" in said
        assert "Fatal Python error: Aborted" in said  # its stacks are in the log
        assert texts(say(service)) == ["one"]


def test_a_daemon_that_gets_a_tenth_of_the_time_goes_on(service: Container) -> None:
    with changed(service, "starve", "WatchdogSec=3"):
        stopped = (
            "import os, signal, sys, time\n"
            "pids = list(map(int, sys.argv[1:]))\n"
            "end = time.monotonic() + 5\n"
            "while time.monotonic() < end:\n"
            "    [os.kill(p, signal.SIGSTOP) for p in pids]\n"
            "    time.sleep(0.18)\n"
            "    [os.kill(p, signal.SIGCONT) for p in pids]\n"
            "    time.sleep(0.02)\n"
        )
        pids = [str(pid_of(service)), str(worker_of(service))]
        starving = service.start_process(PYTHON, "-c", stopped, *pids)
        assert texts(say(service)) == ["one"]
        output, _ = starving.communicate(timeout=60)
        assert starving.returncode == 0, output
        assert restarts(service) == 0
        assert texts(say(service)) == ["one"]


# ---- limits of restarting ----------------------------------------------------------------------


def test_a_wrong_configuration_is_not_tried_again(service: Container) -> None:
    with changed(service, "wrong", "Environment=VOICED_SERVER_PORT=many"):
        facts = service.show("voiced", "ActiveState", "NRestarts", "ExecMainStatus")
        assert facts == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "2"}
        assert 'server.port = "many"' in service.journal("-u", "voiced")


def test_a_daemon_that_cannot_start_is_given_up_after_five_times(service: Container) -> None:
    lines = (
        "RestartSec=10ms",
        "ExecStart=",
        "ExecStart=/bin/sh -c 'exit 3'",
        "[Unit]",
        "StartLimitIntervalSec=60",
    )
    with changed(service, "zz-limit", *lines):
        service.wait_for(
            "the limit",
            lambda: (
                service.show("voiced", "ActiveState")["ActiveState"] == "failed"
                and "Start request repeated too quickly" in service.journal("-u", "voiced")
            ),
        )
        assert restarts(service) == 5


# ---- stop, reload, sockets ---------------------------------------------------------------------


def test_a_stop_under_load_answers_every_segment_within_five_seconds(service: Container) -> None:
    with changed(service, "stop", "TimeoutStopSec=5"):
        speaking = [service.start_process(*client("8765", "60")) for _ in range(4)]
        service.wait_for(
            "speech", lambda: "4 of 64" in service.show("voiced", "StatusText")["StatusText"]
        )
        time.sleep(2)  # in the middle of things
        service.run("systemctl", "stop", "voiced")
        assert service.show("voiced", "Result", "ExecMainStatus") == {
            "Result": "success",  # a stop that takes longer than TimeoutStopSec is a `timeout`
            "ExecMainStatus": "0",
        }
        for each in speaking:
            told = messages(each.communicate(timeout=60)[0])
            kinds = [message["type"] for message in told]
            assert kinds.count("speech_started") == kinds.count("final") > 0
            assert kinds[-2:] == ["ended", "closed"]
            assert told[-1]["code"] == 1001


def test_a_reload_is_waited_for_and_costs_nothing(service: Container) -> None:
    daemon = pid_of(service)
    service.run("systemctl", "reload", "voiced")
    service.wait_for("its end", lambda: is_answering(service))
    assert "SIGHUP" in service.journal("-u", "voiced")
    assert (pid_of(service), restarts(service)) == (daemon, 0)
    assert texts(say(service)) == ["one"]


@pytest.mark.parametrize("target", ["8765", "/run/voiced.sock"])
def test_the_first_connection_starts_the_daemon_and_is_answered(
    service: Container, target: str
) -> None:
    service.run("systemctl", "stop", "voiced")
    service.run("systemctl", "start", "voiced.socket")
    assert service.show("voiced", "ActiveState")["ActiveState"] == "inactive"
    told = say(service, target)
    assert told[0]["type"] == "ready"  # nothing was refused on the way
    assert texts(told) == ["one"]
    assert is_answering(service)


def test_with_the_socket_unit_nobody_is_refused_while_the_daemon_is_replaced(
    service: Container,
) -> None:
    service.run("systemctl", "stop", "voiced")
    service.run("systemctl", "start", "voiced.socket", "voiced")
    kill(service, signal.SIGKILL, pid_of(service))
    told = say(service)
    assert told[0]["type"] == "ready"
    assert texts(told) == ["one"]
    assert restarts(service) == 1


PULSE = """
[Service]
ExecStart=/usr/bin/pulseaudio -n --daemonize=no --exit-idle-time=-1 --log-level=error \\
  -L "module-native-protocol-unix auth-anonymous=1 socket=/run/vpulse/native" \\
  -L "module-null-sink sink_name=vmic rate=16000 channels=1 norewinds=1"
RuntimeDirectory=vpulse
Environment=HOME=/run/vpulse XDG_RUNTIME_DIR=/run/vpulse
"""
"""A sound server of another user, that lets everybody in."""


@pytest.mark.device
def test_the_service_records_through_a_sound_server_of_another_user(service: Container) -> None:
    if reason := virtual_microphone.missing():
        needs.missing("DEVICE", reason)
    service.write("/run/systemd/system/vpulse.service", PULSE)
    server = "PULSE_SERVER=unix:/run/vpulse/native"
    lines = (f"Environment={server} VOICED_MICROPHONE_ENABLED=true VOICED_MICROPHONE_DEVICE=pulse",)
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "start", "vpulse")
    service.wait_for(
        "the sound server",
        lambda: service.run("env", server, "pactl", "info", check=False).returncode == 0,
    )
    try:
        with changed(service, "microphone", *lines):
            service.wait_for(
                "the microphone",
                lambda: "microphone running" in service.show("voiced", "StatusText")["StatusText"],
            )
            said = service.journal("-u", "voiced")
            assert "stream opened stream=microphone" in said  # there was sound
            service.run("systemctl", "kill", "-s", "KILL", "vpulse")
            service.wait_for(
                "its loss",
                lambda: "microphone waiting" in service.show("voiced", "StatusText")["StatusText"],
            )
            service.run("systemctl", "restart", "vpulse")
            service.wait_for(
                "its return",
                lambda: "microphone running" in service.show("voiced", "StatusText")["StatusText"],
            )
            assert restarts(service) == 0
    finally:
        service.run("systemctl", "stop", "vpulse")
        service.run("systemctl", "reset-failed", "vpulse", check=False)


# ---- power -------------------------------------------------------------------------------------


def test_it_is_back_after_a_reboot_and_after_a_power_cut_with_what_it_kept(
    product: Path,
) -> None:
    with product_machine(product, FILES) as car:
        car.boot()
        units = ("voiced.socket", "voiced.service", "voiced-plugin@jsonl.service")
        car.run("systemctl", "enable", "--now", *units)
        said = "/var/lib/voiced-plugins/jsonl/said.jsonl"

        def kept() -> int:
            return len(car.run("cat", said, check=False).stdout.splitlines())

        for restart in (lambda: None, car.reboot, lambda: (car.cut_power(), car.boot())):
            before = kept()
            restart()
            car.wait_for("the daemon", lambda: is_answering(car))
            car.wait_for("the plugin", lambda: pid_of(car, "voiced-plugin@jsonl"))
            assert kept() == before

            def is_kept(start: int = before) -> bool:  # a plugin hears what is said once it listens
                assert texts(say(car, "/run/voiced.sock")) == ["one"]
                return kept() > start

            car.wait_for("the plugin's file", is_kept)
            assert car.run("systemctl", "--failed", "--quiet").stdout == ""


@pytest.mark.model
@pytest.mark.speech
def test_the_real_model_answers_after_a_boot_without_a_network(
    product: Path, bundle: Path, speech_dir: Path
) -> None:
    clip = speech_dir / "en_commands_misc" / "turn_on_the_living_room_lamp.flac"
    if not clip.is_file():
        needs.missing("SPEECH", f"no recording {clip}")
    models, sound = "/opt/voiced-models", "/opt/voiced-test.flac"
    files = {
        "/etc/voiced/voiced.toml": "",
        "/etc/systemd/system/voiced.service.d/models.conf": (
            f"[Service]\nEnvironment=VOICED_MODEL_DIR={models}\n"
        ),
    }
    with product_machine(product, files, binds={clip: sound, bundle.parent: models}) as car:
        wants = car.root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "voiced.service").symlink_to("/etc/systemd/system/voiced.service")
        car.boot()
        car.wait_for("the daemon", lambda: is_answering(car))
        told = car.run(
            "/opt/voiced/bin/voiced",
            "stream",
            "--json",
            "--language",
            "en",
            "/opt/voiced-test.flac",
        )
        finals = [message for message in messages(told.stdout) if message.get("type") == "final"]
        assert "living room lamp" in " ".join(message["text"] for message in finals).lower()
        usec = car.show(
            "voiced", "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic"
        )
        start, ready = (int(value) for value in usec.values())
        print(f"READY {abs(ready - start) / 1e6:.2f} s after its start")
