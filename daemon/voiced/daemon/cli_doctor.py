"""`voiced doctor`: arguments in; the work is in `commands/doctor.py`."""

from __future__ import annotations

import typer

from voiced.daemon.cli_options import AsJson, Config


def add_commands(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("doctor")
    def _doctor(config: Config = None, as_json: AsJson = False) -> None:
        """Check settings, machine, model, ports, sound and NPU, and say what to do.

        Each finding is ok, warn (works, but) or fail (what is configured does not work), with the
        next step. The exit status is 1 where something fails, else 0. Nothing is changed.
        """
        from voiced.daemon.commands.doctor import doctor

        raise typer.Exit(doctor(config, as_json=as_json))
