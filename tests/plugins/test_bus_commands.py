"""`voiced listen` and `voiced plugins`, as functions."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from voiced.daemon.commands.listen import listen
from voiced.daemon.commands.plugins import plugins_list, plugins_run, read_options
from voiced.plugins.testing import FakeBus

WAIT_S = 20.0


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    with FakeBus() as bus:
        yield bus


def heard(
    bus: FakeBus, say: Callable[[], object], *, types: list[str], as_json: bool, count: int
) -> tuple[str, str]:
    """Output and error output of one `listen` that ends by itself."""
    out, err = io.StringIO(), io.StringIO()
    run = threading.Thread(
        target=listen, args=(bus.endpoint, types, as_json, count), kwargs={"out": out, "err": err}
    )
    run.start()
    bus.wait_for_subscriber(timeout_s=WAIT_S)
    say()
    run.join(WAIT_S)
    assert not run.is_alive()
    return out.getvalue(), err.getvalue()


def test_listen_prints_messages_and_tells_losses_apart(bus: FakeBus) -> None:
    def say() -> None:
        bus.final("one", stream="mic")
        bus.skip(2)
        bus.final("four", stream="mic")

    out, err = heard(bus, say, types=[], as_json=False, count=2)
    first, second = out.splitlines()
    assert first.startswith("final/mic ")
    assert "text=one" in first
    assert "text=four" in second
    assert "-- 2 messages were lost (2 to 3) --" in err


def test_listen_writes_json_lines_of_the_wanted_types(bus: FakeBus) -> None:
    def say() -> None:
        bus.partial("on")
        bus.skip()
        bus.final("one")

    out, err = heard(bus, say, types=["final"], as_json=True, count=1)
    gap, final = [each for each in map(json.loads, out.splitlines()) if each["type"] != "lost"]
    assert gap == {"type": "gap", "epoch": bus.epoch, "first": 2, "last": 2}
    assert (final["type"], final["text"], final["seq"]) == ("final", "one", 3)
    assert err == ""


def test_listen_refuses_what_it_cannot_use(
    bus: FakeBus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listen(bus.endpoint, ["finals"]) == 2
    assert "no such message type: finals; known: ready" in capsys.readouterr().err
    assert listen("nowhere") == 2
    assert "'nowhere' cannot be used" in capsys.readouterr().err


def test_the_list_names_the_built_in_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert plugins_list() == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"print", "jsonl", "intents"} <= set(names)


def test_options_come_from_the_table_and_pairs_go_over_it(tmp_path: Path) -> None:
    config = tmp_path / "voiced.toml"
    config.write_text('[plugins.jsonl]\npath = "/a"\nkeep = 3\n[plugins.print]\npartials = true\n')
    options = read_options("jsonl", config, ["path=/b=c", "fsync=always"])
    assert options == {"path": "/b=c", "keep": 3, "fsync": "always"}
    assert read_options("other", config, []) == {}


@pytest.mark.parametrize(
    ("content", "pairs", "reason"),
    [
        ("plugins = 3", [], "expected a table, found 3"),
        ("not toml", [], "voiced.toml: cannot be used"),
        ("", ["path"], "--set path: expected key=value"),
        ("", ["=x"], "--set =x: expected key=value"),
    ],
)
def test_unusable_options_exit_with_the_usage_code(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    pairs: list[str],
    reason: str,
) -> None:
    config = tmp_path / "voiced.toml"
    config.write_text(content)
    assert plugins_run("print", config=config, settings=pairs) == 2
    assert reason in capsys.readouterr().err
