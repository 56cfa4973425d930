"""Tables on the terminal and one JSON file: how every benchmark shows its figures."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Protocol, TextIO
from unicodedata import east_asian_width

from voiced.bench.machine import Machine, describe

JSON_VERSION = 1


@dataclass(frozen=True, slots=True)
class Table:
    """Cells already written as text; the first column is flush left, the others right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Lines under the table: what a column means, what stands out."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row has {len(row)} cells, "
                    f"expected {len(self.columns)}: {row}"
                )


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark found."""

    bench: str
    settings: Mapping[str, object]
    """What the command was asked to do, effective values."""
    tables: Sequence[Table]
    result: object
    """The figures for other programs: dataclasses, mappings, sequences and plain values."""
    machine: Machine = field(default_factory=describe)
    """Look before the run where the load matters."""
    command: str = ""
    """How it is called, when it is not `voiced bench` and its name."""


def publish(report: Report, *, json_path: Path | None = None, out: TextIO | None = None) -> None:
    """Print the report to `out` (standard output) and write the JSON file when asked for.

    Raises:
        OSError: The JSON file cannot be written.
    """
    out = sys.stdout if out is None else out
    if out.isatty():
        _print_rich(report, out)
    else:
        _print_plain(report, out)
    out.flush()
    if json_path is not None:
        write_json(report, json_path)


def write_json(report: Report, path: Path) -> None:
    """Write `{bench, version, at, command, machine, settings, result}`; whole or not at all."""
    body = {
        "bench": report.bench,
        "version": JSON_VERSION,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": report.machine,
        "settings": report.settings,
        "result": report.result,
    }
    text = json.dumps(plain(body), indent=2, ensure_ascii=False, allow_nan=False)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def plain(value: object) -> object:
    """Turn a value into what JSON can hold; a number that is none (nan, inf) becomes null."""
    match value:
        case Enum():
            return plain(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Path():
            return str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return plain(asdict(value))
        case _ if hasattr(value, "tolist"):  # numpy scalars and arrays
            return plain(value.tolist())
        case _:
            raise TypeError(f"report value must be plain data, not {type(value).__name__}")


def plain_table(table: Table) -> str:
    """Write a table as aligned text, no trailing spaces."""
    widths = [
        max(_width(cell) for cell in cells)
        for cells in zip(table.columns, *table.rows, strict=True)
    ]
    rule = tuple("-" * width for width in widths)
    lines = [table.title]
    for row in (table.columns, rule, *table.rows):
        cells = [
            _pad(cell, width, left=index == 0)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.extend(f"* {note}" for note in table.notes)
    return "\n".join(lines)


class Progress(Protocol):
    """Takes one call per finished item."""

    def __call__(self, label: str) -> None:
        """One more item is done; `label` says which."""
        ...


@contextmanager
def progress(total: int, title: str, *, err: TextIO | None = None) -> Iterator[Progress]:
    """Show how far a run is: a bar on a terminal, else a line at every tenth.

    Written to standard error, so that a piped report stays clean.
    """
    err = sys.stderr if err is None else err
    if err.isatty():
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(file=err), transient=True) as bar:
            task = bar.add_task(title, total=total)

            def advance(label: str) -> None:
                bar.update(task, advance=1, description=f"{title} {label}")

            yield advance
        return

    done = 0

    def log(label: str) -> None:
        nonlocal done
        done += 1
        if done * 10 // max(total, 1) != (done - 1) * 10 // max(total, 1):
            print(f"{title}: {done}/{total} {label}", file=err, flush=True)

    yield log


def _print_plain(report: Report, out: TextIO) -> None:
    blocks = [_heading(report), *(plain_table(table) for table in report.tables)]
    print("\n\n".join(blocks), file=out)


def _print_rich(report: Report, out: TextIO) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console(file=out, highlight=False)
    console.print(escape(_heading(report)))
    for table in report.tables:
        shown = RichTable(title=escape(table.title), title_justify="left")
        for index, column in enumerate(table.columns):
            shown.add_column(escape(column), justify="left" if index == 0 else "right")
        for row in table.rows:
            shown.add_row(*(escape(cell) for cell in row))
        console.print()
        console.print(shown)
        for note in table.notes:
            console.print(f"* {escape(note)}")


def _heading(report: Report) -> str:
    settings = ", ".join(f"{key} {plain(value)}" for key, value in report.settings.items())
    command = report.command or f"voiced bench {report.bench}"
    return "\n".join((f"{command}: {settings}", *report.machine.lines()))


def _width(text: str) -> int:
    """Columns on a terminal: wide (Mandarin) characters take two."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def _pad(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text
