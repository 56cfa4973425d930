"""Plugins as processes: good ones, ones that raise, ones that hang; and how they are found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from voiced.daemon import wire
from voiced.plugins.errors import PluginConfigError, PluginNotFound, SentencesError
from voiced.plugins.runner import (
    EXIT_FAILED,
    Limits,
    Watchdog,
    installed_plugins,
    load_plugin,
    run_plugin,
    serve,
)
from voiced.plugins.sdk import IntentPublisher, Plugin, PluginContext
from voiced.plugins.subscriber import BusSubscriber, Gap
from voiced.plugins.testing import FakeBus

WAIT_S = 20.0

PLUGINS = """
    import threading
    from voiced.daemon.wire import Intent
    from voiced.plugins.sdk import Plugin

    class Echo(Plugin):
        name = "echo"
        def on_final(self, message):
            if message.text == "raise":
                raise RuntimeError("on purpose")
            if message.text == "hang":
                threading.Event().wait()
            self.say(message, message.text)
        def on_gap(self, gap):
            self.gap = gap
        def say(self, message, name):
            slots = {"config": self.context.config}
            self.context.publish(Intent(stream=message.stream, segment=message.segment, name=name,
                                        slots=slots, text=message.text, confidence=1.0))

    class BrokenSetup(Plugin):
        def setup(self, context):
            raise RuntimeError("no such device")
"""

RUN = """
    import sys
    from voiced.plugins.runner import Limits, run_plugin
    limits = Limits(failures_in_a_row=3, handler_s=float(sys.argv[4]))
    sys.exit(run_plugin(sys.argv[1], sys.argv[2], sys.argv[3], {"key": "value"}, limits=limits))
"""


class Processes:
    """Starts plugin processes and ends what is left of them."""

    def __init__(self, bus: FakeBus, folder: Path) -> None:
        self._bus, self._folder = bus, folder
        self._all: list[subprocess.Popen[str]] = []
        (folder / "written_by_the_test.py").write_text(textwrap.dedent(PLUGINS))

    def start(self, plugin: str, *, handler_s: float = 60.0) -> subprocess.Popen[str]:
        arguments = [f"written_by_the_test:{plugin}", self._bus.endpoint, self._bus.ingest_endpoint]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RUN), *arguments, str(handler_s)],
            env={**os.environ, "PYTHONPATH": str(self._folder)},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._all.append(process)
        return process

    def close(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=WAIT_S)


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with FakeBus() as bus:
        yield bus


@pytest.fixture
def processes(bus: FakeBus, tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(bus, tmp_path)
    yield processes
    processes.close()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the process; its exit code and what it logged."""
    _, log = process.communicate(timeout=WAIT_S)
    return process.returncode, log


def test_a_plugin_answers_finals_with_intents_and_stops_on_sigterm(
    bus: FakeBus, processes: Processes
) -> None:
    process = processes.start("Echo")
    bus.wait_for_subscriber(timeout_s=WAIT_S)
    bus.final("hello", stream="mic")
    (intent,) = bus.intents(timeout_s=WAIT_S)
    assert (intent.plugin, intent.stream, intent.name) == ("echo", "mic", "hello")
    assert intent.slots == {"config": {"key": "value"}}
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 0


def test_ctrl_c_is_a_clean_stop_too(bus: FakeBus, processes: Processes) -> None:
    process = processes.start("Echo")
    bus.wait_for_subscriber(timeout_s=WAIT_S)
    bus.final("ready")
    bus.intents(timeout_s=WAIT_S)
    process.send_signal(signal.SIGINT)
    assert end(process) == (0, "")


def test_a_message_that_breaks_a_plugin_costs_that_message_only(
    bus: FakeBus, processes: Processes
) -> None:
    process = processes.start("Echo")
    bus.wait_for_subscriber(timeout_s=WAIT_S)
    for text in ("raise", "raise", "fine", "raise", "raise", "still fine"):
        bus.final(text)
    assert [each.name for each in bus.intents(2, timeout_s=WAIT_S)] == ["fine", "still fine"]
    process.terminate()
    code, log = end(process)
    assert code == 0
    assert log.count("RuntimeError: on purpose") == 4
    assert "message=final stream=test segment=1 revision=1 epoch=epoch-1 seq=1" in log


def test_a_plugin_that_only_fails_ends_and_a_new_one_goes_on(
    bus: FakeBus, processes: Processes
) -> None:
    first = processes.start("Echo")
    bus.wait_for_subscriber(timeout_s=WAIT_S)
    for _ in range(3):
        bus.final("raise")
    code, log = end(first)
    assert code == EXIT_FAILED
    assert "failures_in_a_row=3" in log
    processes.start("Echo")
    bus.wait_for_subscriber(timeout_s=WAIT_S)
    bus.final("after the restart")
    assert bus.intents(timeout_s=WAIT_S)[0].name == "after the restart"


def test_a_hung_plugin_is_ended_with_its_stack_and_harms_no_other(
    bus: FakeBus, processes: Processes
) -> None:
    hangs = processes.start("Echo", handler_s=0.5)
    bus.wait_for_subscriber(timeout_s=WAIT_S)
    bus.final("hang")
    code, log = end(hangs)
    assert code == EXIT_FAILED
    assert "plugin hangs" in log
    assert "in on_final" in log
    assert "segment=1" in log
    processes.start("Echo")
    bus.wait_for_subscriber(timeout_s=WAIT_S)
    bus.final("others work")
    assert bus.intents(timeout_s=WAIT_S)[0].name == "others work"


def test_a_setup_that_raises_ends_the_process_with_its_reason(processes: Processes) -> None:
    code, log = end(processes.start("BrokenSetup"))
    assert code == EXIT_FAILED
    assert "RuntimeError: no such device" in log


@pytest.mark.parametrize("name", ["print", "jsonl", "intents"])
def test_a_built_in_plugin_is_installed_and_loads(name: str) -> None:
    assert name in installed_plugins()
    assert load_plugin(name).name == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("prnt", "not installed and not module:Class; installed plugins: intents, jsonl, print"),
        ("no.such.module:Class", "No module named 'no'"),
        ("voiced.plugins.sdk:Missing", "has no attribute 'Missing'"),
        ("pathlib:Path", "pathlib:Path is no subclass"),
    ],
)
def test_a_name_that_leads_to_no_plugin_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(PluginNotFound, match=reason):
        load_plugin(name)


def run_command(*arguments: str) -> tuple[int, str]:
    """Run `voiced plugins run`; its exit status and what it said."""
    command = (sys.executable, "-m", "voiced.daemon.cli", "plugins", "run", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nope",), "plugin 'nope' cannot be loaded: not installed"),
        (("print", "--bus", "nowhere"), "bus endpoint 'nowhere' cannot be used"),
        (("print", "--ingest", "nowhere"), "ingest endpoint 'nowhere' cannot be used"),
        (("jsonl", "--set", "pth=x"), "pth: no such option, did you mean path?"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line_and_the_usage_status(
    arguments: tuple[str, ...], says: str
) -> None:
    status, said = run_command(*arguments)
    assert status == 2
    assert said.startswith("voiced: ")
    assert says in said
    assert said.count("\n") == 1


def test_bad_options_are_all_named(bus: FakeBus) -> None:
    options = {"pth": "x", "keep": "none"}
    with pytest.raises(PluginConfigError) as caught:
        run_plugin("jsonl", bus.endpoint, bus.ingest_endpoint, options)
    said = str(caught.value)
    assert "pth: no such option, did you mean path?" in said
    assert "keep = 'none': input should be a valid integer" in said
    assert "path = absent: field required" in said


def test_a_bad_file_that_options_name_is_an_error_of_the_users(
    bus: FakeBus, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("language: [en", "utf-8")
    options = {"sentences": str(tmp_path)}
    with pytest.raises(SentencesError, match=r"own\.yaml: not YAML"):
        run_plugin("intents", bus.endpoint, bus.ingest_endpoint, options)
    assert run_command("intents", "--set", f"sentences={tmp_path}")[0] == 2


class SomeOptions(BaseModel):
    level: int = Field(default=3, ge=1)
    loud: bool = False


def test_options_given_as_text_become_what_they_mean(bus: FakeBus) -> None:
    with IntentPublisher(bus.ingest_endpoint) as publisher:
        context = PluginContext("some", {"level": "7", "loud": "true"}, publisher)
        assert context.options(SomeOptions) == SomeOptions(level=7, loud=True)
        context = PluginContext("some", {"level": 0, "lout": 1}, publisher)
        with pytest.raises(PluginConfigError, match=r"lout: .* loud\?; level = 0: input should"):
            context.options(SomeOptions)


def test_an_intent_without_a_daemon_is_dropped_and_counted() -> None:
    bus = FakeBus()
    bus.close()
    intent = wire.Intent(stream="s", segment=1, name="X", slots={}, text="", confidence=1.0)
    with IntentPublisher(bus.ingest_endpoint, timeout_s=0.01) as publisher:
        assert not PluginContext("p", {}, publisher).publish(intent)
        assert publisher.dropped == 1


class Recorder(Plugin):
    def __init__(self, subscriber: BusSubscriber) -> None:
        self.seen: list[object] = []
        self._subscriber = subscriber

    def on_partial(self, message: wire.Partial) -> None:
        self.seen.append(message.text)

    def on_final(self, message: wire.Final) -> None:
        self.seen.append(message.text)
        self._subscriber.interrupt()

    def on_gap(self, gap: Gap) -> None:
        self.seen.append(gap)


def test_each_kind_of_item_reaches_its_own_handler(bus: FakeBus) -> None:
    with BusSubscriber(bus.endpoint, heartbeat_s=WAIT_S) as subscriber, Watchdog() as watchdog:
        bus.wait_for_subscriber()
        bus.partial("a")
        bus.skip()
        bus.final("b")
        plugin = Recorder(subscriber)
        assert serve("recorder", plugin, subscriber, watchdog, Limits()) == 0
    assert plugin.seen == ["a", Gap(bus.epoch, 2, 2), "b"]
