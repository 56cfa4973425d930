"""`voiced doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from voiced.daemon.doctor.finding import Finding, Level

OK, FAILED = 0, 1

_COLOURS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "31"}
_WIDTH = 100
_INDENT = 19


def doctor(config_file: Path | None, *, as_json: bool) -> int:
    """Examine this machine and the settings; return 1 where something fails, else 0.

    Warnings do not count: what they are about works.
    """
    from voiced.daemon.doctor.examine import examine

    findings = examine(config_file)
    if as_json:
        found = list(findings)
        print(json.dumps(as_document(found), ensure_ascii=False, indent=2))
    else:
        found = show(findings, sys.stdout)
    return FAILED if any(each.level is Level.FAIL for each in found) else OK


def as_document(findings: Sequence[Finding]) -> dict[str, object]:
    """Everything as plain values."""
    return {
        "version": version("voiced"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "counts": counts(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """How many of each level."""
    counted = Counter(finding.level.value for finding in findings)
    return {level.value: counted[level.value] for level in Level}


def show(findings: Iterable[Finding], out: TextIO) -> list[Finding]:
    """Write each finding as it is found, then the sum; return them."""
    is_coloured = out.isatty() and not os.environ.get("NO_COLOR")

    def paint(text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if is_coloured else text

    python = f"Python {platform.python_version()}, {platform.machine()}"
    out.write(paint(f"voiced {version('voiced')}", "1") + f"  {python}\n\n")
    seen: list[Finding] = []
    for finding in findings:
        is_same = bool(seen) and seen[-1].check == finding.check
        level = paint(f"{finding.level.value:<4}", _COLOURS[finding.level])
        name = "" if is_same else finding.check
        lines = wrapped(finding.found)
        out.write(f"  {level}  {name:<11}{lines[0]}\n")
        rest = [paint(f"{' ' * _INDENT}{line}", "0") for line in lines[1:]]
        if finding.next_step is not None:
            first, *more = wrapped(f"→ {finding.next_step}")
            rest += [paint(f"{' ' * _INDENT}{first}", "36")]
            rest += [paint(f"{' ' * _INDENT}  {line}", "36") for line in more]
        out.writelines(line + "\n" for line in rest)
        out.flush()
        seen.append(finding)
    sums = counts(seen)
    worst = next((level for level in (Level.FAIL, Level.WARN) if sums[level]), Level.OK)
    told = (_count(sums["warn"], "warning"), _count(sums["fail"], "failure"))
    out.write("\n" + paint(", ".join((f"{sums['ok']} ok", *told)), _COLOURS[worst]) + "\n")
    return seen


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def wrapped(text: str) -> list[str]:
    """Break into lines that fit behind the names."""
    lines = [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(part.strip(), _WIDTH - _INDENT, break_on_hyphens=False)
    ]
    return lines or [""]
