from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from voiced.bench.machine import Machine, describe, parse_cpuinfo, parse_meminfo, versions
from voiced.bench.report import Report, Table, plain, plain_table, progress, publish
from voiced.bench.scoring import Interval

MACHINE = Machine(
    cpu="Example 9000",
    flags=("avx2",),
    cores=2,
    memory_gib=4.0,
    load_1min=0.1,
    system="Linux",
    python="3.11",
    packages={"numpy": "2.0"},
    commit="abc123",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(**changes: object) -> Report:
    table = Table("errors", ("set", "%"), (("[en]", "1.5"), ("中文", "12.0")), ("a note",))
    return Report("example", {"beam": 5}, (table,), changes.get("result", {}), MACHINE)


def test_a_plain_table_is_aligned_for_wide_characters_too() -> None:
    (table,) = report().tables
    assert plain_table(table).splitlines() == [
        "errors",
        "set      %",
        "----  ----",
        "[en]   1.5",
        "中文  12.0",
        "* a note",
    ]


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="row has 1 cells, expected 2"):
        Table("errors", ("set", "%"), (("en",),))


def test_a_piped_report_is_plain_and_names_machine_and_commit() -> None:
    out = io.StringIO()
    publish(report(), out=out)
    text = out.getvalue()
    assert text.startswith("voiced bench example: beam 5\ncpu: Example 9000 (avx2), 2 cores")
    assert "commit abc123" in text
    assert "\x1b" not in text
    assert "\n[en]   1.5\n" in text


def test_a_terminal_report_shows_the_same_cells() -> None:
    out = Terminal()
    publish(report(), out=out)
    assert all(cell in out.getvalue() for cell in ("[en]", "1.5", "中文", "12.0", "a note"))


def test_the_json_file_has_everything_and_no_number_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = {"rate": Interval(float("nan"), 1.0, float("inf")), "path": Path("a/b")}
    publish(report(result=result), json_path=path, out=io.StringIO())
    body = json.loads(path.read_text())
    assert body["result"] == {
        "rate": {"value": None, "low": 1.0, "high": None},
        "path": "a/b",
    }
    assert (body["bench"], body["version"], body["settings"]) == ("example", 1, {"beam": 5})
    assert body["machine"]["commit"] == "abc123"
    assert [each.name for each in tmp_path.iterdir()] == ["figures.json"]


def test_a_json_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        publish(report(), json_path=tmp_path / "missing" / "x.json", out=io.StringIO())


def test_numpy_values_and_nested_dataclasses_become_plain() -> None:
    @dataclass(frozen=True)
    class Pair:
        each: tuple[Interval, ...]

    value = {"a": np.float32(0.5), "b": np.arange(2), "c": Pair((Interval(1, 2, 3),))}
    assert plain(value) == {
        "a": 0.5,
        "b": [0, 1],
        "c": {"each": [{"value": 1, "low": 2, "high": 3}]},
    }


def test_a_value_that_is_no_data_is_refused() -> None:
    with pytest.raises(TypeError, match="plain data, not object"):
        plain(object())


def test_progress_without_a_terminal_is_a_line_at_every_tenth() -> None:
    err = io.StringIO()
    with progress(20, "speech", err=err) as advance:
        for number in range(20):
            advance(f"clip-{number}")
    lines = err.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "speech: 2/20 clip-1"
    assert lines[-1] == "speech: 20/20 clip-19"


def test_the_cpu_and_its_int8_features_are_found() -> None:
    text = "processor : 0\nmodel name\t: Example 9000\nflags\t\t: fpu avx2 avx512_vnni sse\n"
    assert parse_cpuinfo(text * 2) == ("Example 9000", ("avx2", "avx512_vnni"))
    assert parse_cpuinfo("Features : fp asimd asimddp\n") == ("", ("asimd", "asimddp"))
    assert parse_cpuinfo("") == ("", ())


def test_the_memory_is_given_in_gib() -> None:
    assert parse_meminfo("MemTotal:       24679000 kB\nMemFree: 1 kB\n") == 23.5
    assert parse_meminfo("") == 0.0


def test_packages_that_are_not_installed_are_left_out() -> None:
    found = versions(("numpy", "no-such-package-voiced"))
    assert found == {"numpy": np.__version__}


def test_this_machine_can_be_described() -> None:
    machine = describe()
    assert machine.cpu
    assert machine.cores >= 1
    assert len(machine.lines()) == 3
