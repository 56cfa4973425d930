"""`voiced doctor`: arguments in; the work is in `commands/doctor.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def add_commands(app: typer.Typer, done: Callable[[int], None]) -> None:
    """Add the command.

    Args:
        app: The program's commands.
        done: Ends the program with a status.
    """

    @app.command("doctor")
    def _doctor(
        config: Annotated[
            Path | None,
            typer.Option(
                "--config", help="Configuration file (TOML).", metavar="FILE", dir_okay=False
            ),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Check settings, machine, model, ports, sound and NPU, and say what to do.

        Each finding is ok, warn (works, but) or fail (what is configured does not work), with the
        next step. The exit status is 1 where something fails, else 0. Nothing is changed.
        """
        from voiced.daemon.commands.doctor import doctor

        done(doctor(config, as_json=as_json))
