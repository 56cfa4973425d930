"""How every group of commands is made."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from voiced.daemon.commands.pipes import ends_with_its_reader


class _Commands(TyperGroup):
    """Commands whose output may lose its reader; the library's own answer to that is status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with ends_with_its_reader():
            return super().invoke(ctx)


def group(text: str) -> typer.Typer:
    """Make a group of commands with this help."""
    return typer.Typer(
        cls=_Commands,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # rich takes longer to import than everything else here
        pretty_exceptions_enable=False,
    )
