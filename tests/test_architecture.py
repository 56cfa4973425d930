"""Who may import whom, and what `voiced --help` must not import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("audio", "engine", "daemon", "plugins", "bench")

ALLOWED = {
    "audio": {"audio"},
    "engine": {"audio", "engine"},
    "daemon": {"audio", "engine", "daemon"},
    "plugins": {"plugins"},
    "bench": {"audio", "engine", "daemon", "bench"},
}
"""Stage → stages it may import."""

EXCEPTIONS = {
    ("plugins", "voiced.daemon.wire"),
    ("plugins", "voiced.daemon"),  # `from voiced.daemon import wire`; the names are checked below
}

COMMAND_LINE = ("voiced.daemon.cli", "voiced.daemon.commands")
"""The command line starts everything there is, plugins and benchmarks too."""

HEAVY = frozenset(
    {
        *(
            "asyncio",
            "av",
            "hassil",
            "msgspec",
            "numpy",
            "onnx",
            "onnxruntime",
            "prometheus_client",
        ),
        *("pydantic", "rich", "sounddevice", "soxr", "webrtcvad", "websockets", "zmq"),
    }
)


def modules() -> Iterator[tuple[str, Path]]:
    for stage in STAGES:
        base = ROOT / stage
        for path in sorted((base / "voiced").rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imports(path: Path, *, deferred: bool) -> set[str]:
    """Our modules that a file imports; `deferred` adds those inside functions, for types only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
                for alias in child.names:
                    name = f"{child.module}.{alias.name}"
                    found.add(name if name in MODULES else child.module)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not deferred:
                continue
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                if deferred:
                    visit(child)
            else:
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {name for name in found if name.startswith("voiced.")}


def stage_of(module: str) -> str:
    return module.split(".")[1]


def test_every_module_is_found() -> None:
    assert "voiced.daemon.cli" in MODULES
    assert {stage_of(name) for name in MODULES} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_only_what_lies_before_it(stage: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if stage_of(module) == stage and not module.startswith(COMMAND_LINE)
        for name in imports(path, deferred=True)
        if stage_of(name) not in ALLOWED[stage] and (stage, name) not in EXCEPTIONS
    ]
    assert wrong == []


def test_plugins_take_only_the_wire_from_the_daemon() -> None:
    wrong = []
    for module, path in MODULES.items():
        if stage_of(module) != "plugins":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "voiced.daemon":
                wrong += [f"{module}: {a.name}" for a in node.names if a.name != "wire"]
    assert wrong == []


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if not module.startswith((*COMMAND_LINE, "voiced.bench"))
        for name in imports(path, deferred=True)
        if name.startswith(COMMAND_LINE)
    ]
    assert wrong == []


def test_there_is_no_import_cycle() -> None:
    graph = {module: imports(path, deferred=False) for module, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) >= set(MODULES)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], set()),
        # typer reads the arguments of a command with pydantic
        (["run", "--help"], {"asyncio", "pydantic"}),
        (["version"], {"asyncio", "pydantic"}),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], allowed: set[str]) -> None:
    program = (
        "import sys\n"
        "from voiced.daemon.cli import main\n"
        f"sys.argv = ['voiced', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in result.stderr.split()}
    assert loaded & HEAVY <= allowed
    assert "voiced" in loaded


def test_no_stage_folder_has_a_package_of_its_own_name() -> None:
    strays = [path for stage in STAGES for path in (ROOT / stage).glob("*.py")]
    strays += [path for stage in STAGES for path in (ROOT / stage / "voiced").glob("*.py")]
    assert strays == []  # `voiced` is a namespace (PEP 420)
    for stage in STAGES:
        assert (ROOT / stage / "voiced" / stage / "py.typed").is_file()
