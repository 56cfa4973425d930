"""`voiced model convert`: a bundle's graphs for another runtime, each checked before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voiced.daemon.commands.model import OK, show_progress, stop_on_sigterm
from voiced.daemon.config import load


def model_convert(name: str, *, target: str, gears_s: Sequence[float], threads: int) -> int:
    """Convert a bundle for a target and print its folder; return the exit code.

    Args:
        name: Bundle name or folder.
        target: `mindspore-cpu`.
        gears_s: Gear lengths in seconds; empty for the default ones.
        threads: Threads of one graph call in the check.
    """
    from voiced.engine.backends.mindspore_lite.backend import MsliteBackend, find_python
    from voiced.engine.build.mindspore.convert import choose_gears, convert_bundle
    from voiced.engine.build.mindspore.tools import find_converter
    from voiced.engine.bundle import Bundle
    from voiced.engine.store import resolve

    bundle = Bundle.open(resolve(name))
    gears = choose_gears(bundle, gears_s)
    named = load().settings.engine.mindspore_lite.python
    python = Path(named).expanduser() if named else find_python()
    converter = find_converter(python)
    backend = MsliteBackend(python=python, deadline_s=60.0)
    try:
        with stop_on_sigterm(), show_progress() as progress:
            path = convert_bundle(bundle, gears, converter, backend, progress, threads=threads)
    finally:
        backend.close()
    print(path)
    return OK


def model_convert_ascend(
    name: str,
    *,
    gears_s: Sequence[float],
    chip: str,
    variant: str,
    device: str,
    config_dir: Path | None,
) -> int:
    """Convert a bundle for an Ascend card and print its folder; return the exit code.

    Args:
        name: Bundle name or folder.
        gears_s: Gear lengths in seconds; empty for the default ones.
        chip: `310P` or `910B`.
        variant: `plain`, `fused` or `aoe`.
        device: Card that checks the artifacts.
        config_dir: Only write the converter's configurations there and print its commands.
    """
    from voiced.engine.backends.mindspore_lite.ascend import AscendBackend
    from voiced.engine.build.mindspore import ascend
    from voiced.engine.build.mindspore.ascend_config import (
        VARIANTS,
        AscendGraph,
        AscendOptions,
        Chip,
        variant_options,
    )
    from voiced.engine.build.mindspore.convert import choose_gears
    from voiced.engine.bundle import Bundle
    from voiced.engine.store import resolve

    (chosen,) = (each for each in VARIANTS if each.name == variant)

    def options(graph: AscendGraph) -> AscendOptions:
        return variant_options(graph, Chip(chip), chosen)

    bundle = Bundle.open(resolve(name))
    gears = choose_gears(bundle, gears_s)
    with stop_on_sigterm(), show_progress() as progress:
        if config_dir is not None:
            work = ascend.plan_work(bundle, gears, options, progress)
            config_dir.mkdir(parents=True, exist_ok=True)
            commands = ascend.write_configs(work, config_dir)
        else:
            backend = AscendBackend(device)
            path = ascend.convert_ascend(
                bundle, gears, options, ascend.run_tool, backend, progress,
                library=f"converter_lite, checked with mindspore_lite {backend.version}",
            )  # fmt: skip
            commands = [str(path)]
    print(*commands, sep="\n")
    return OK
