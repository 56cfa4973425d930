"""SIGHUP to a plugin: its files are read again, or it keeps what it had."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from voiced.plugins.intents.plugin import IntentsPlugin
from voiced.plugins.runner import _signals_interrupt, dispatch
from voiced.plugins.sdk import IntentPublisher, PluginContext
from voiced.plugins.subscriber import BusSubscriber, Nudged
from voiced.plugins.testing import FakeBus

COFFEE = """
language: en
intents:
  MakeCoffee:
    data:
      - sentences: ["WORDS"]
"""


def test_sentences_are_read_again_and_bad_ones_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "coffee.yaml"
    file.write_text(COFFEE.replace("WORDS", "brew coffee"))
    with FakeBus() as bus, IntentPublisher(bus.ingest_endpoint) as publisher:
        plugin = IntentsPlugin()
        options = {"sentences": str(tmp_path), "builtin": False}
        plugin.setup(PluginContext("intents", options, publisher))
        plugin.on_message(bus.final("Brew coffee."))
        assert bus.intents()[0].name == "MakeCoffee"
        file.write_text(COFFEE.replace("WORDS", "boil water"))
        dispatch(plugin, Nudged())
        plugin.on_message(bus.final("Brew coffee."))
        plugin.on_message(bus.final("Boil water."))
        assert [each.text for each in bus.intents()] == ["Boil water."]
        file.write_text("intents: [")
        dispatch(plugin, Nudged())
        assert "sentences stay as they were" in caplog.text
        plugin.on_message(bus.final("Boil water."))
        assert bus.intents()[0].name == "MakeCoffee"


def test_a_hangup_reaches_the_plugin_between_messages() -> None:
    with FakeBus() as bus, BusSubscriber(bus.endpoint) as subscriber:
        assert threading.current_thread() is threading.main_thread()
        with _signals_interrupt(subscriber):
            signal.raise_signal(signal.SIGHUP)
            assert subscriber.receive(timeout_s=20) == Nudged()
            bus.wait_for_subscriber()
            message = bus.final("hello")
            item = subscriber.receive(timeout_s=20)
            assert getattr(item, "text", None) == message.text
            signal.raise_signal(signal.SIGTERM)
            assert subscriber.receive(timeout_s=20) is None
