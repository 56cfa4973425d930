"""Prints finals, partials and intents for people; colours only on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from voiced.daemon import wire
from voiced.plugins.sdk import Plugin, PluginContext
from voiced.plugins.subscriber import Gap

if TYPE_CHECKING:
    from rich.console import Console


class PrintOptions(BaseModel):
    """Options of the print plugin."""

    model_config = ConfigDict(frozen=True)

    partials: bool = False
    """Print every partial on its own line too."""
    intents: bool = True


class PrintPlugin(Plugin):
    """Prints what was said and what was understood, one line each."""

    name = "print"
    start_from = "now"

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    def setup(self, context: PluginContext) -> None:
        """Read the options and open standard output."""
        super().setup(context)
        self._options = context.options(PrintOptions)
        if self._console is None:
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=True)

    def on_message(self, message: wire.ServerMessage) -> None:
        """Print finals, failures, intents and, where wanted, partials."""
        if isinstance(message, wire.Final) and message.text:
            self._line(message, f"{message.text}  ({message.latency_ms} ms)", "bold")
        elif isinstance(message, wire.Partial) and self._options.partials:
            self._line(message, f"{message.text} …", "dim")
        elif isinstance(message, wire.Failed):
            self._line(message, f"failed: {message.code}: {message.message}", "red")
        elif isinstance(message, wire.Intent) and self._options.intents:
            slots = " ".join(f"{key}={value}" for key, value in message.slots.items())
            line = f"→ {message.name} {slots}".rstrip() + f"  ({message.confidence:.2f})"
            self._line(message, line, "green")

    def on_gap(self, gap: Gap) -> None:
        """Say that something is missing here."""
        self._print(f"-- {gap.count} messages were lost --", "yellow")

    def _line(
        self, message: wire.Final | wire.Partial | wire.Failed | wire.Intent, text: str, style: str
    ) -> None:
        start_ms = getattr(message, "start_ms", None)
        at = "" if start_ms is None else f" {start_ms / 1000:.1f}s"
        self._print(f"[{message.stream}{at}] {text}", style)

    def _print(self, line: str, style: str) -> None:
        assert self._console is not None, "setup has not run"
        # markup off: brackets in a transcript are text
        self._console.print(line, style=style, markup=False, emoji=False)
        self._console.file.flush()
