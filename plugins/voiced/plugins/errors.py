"""Errors of the plugin side.

PluginError             base; `code` is stable
├── PluginNotFound      plugin_not_found: no entry point and no importable class of that name
├── PluginConfigError   plugin_config: options that the plugin refuses, every problem at once
└── SentencesError      sentences: a sentence file that cannot be used
"""

from __future__ import annotations

from collections.abc import Sequence


class PluginError(Exception):
    """Base class of the plugin side's errors."""

    code = "plugin"


class PluginNotFound(PluginError):
    """The name leads to no plugin class."""

    code = "plugin_not_found"

    def __init__(self, name: str, *, reason: str, known: Sequence[str]) -> None:
        super().__init__(name, reason, known)
        self.name, self.reason, self.known = name, reason, tuple(known)

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"plugin {self.name!r} cannot be loaded: {self.reason}; installed plugins: {known}"


class PluginConfigError(PluginError):
    """The plugin's options break its rules."""

    code = "plugin_config"

    def __init__(self, plugin: str, problems: Sequence[str]) -> None:
        super().__init__(plugin, problems)
        self.plugin, self.problems = plugin, tuple(problems)

    def __str__(self) -> str:
        return f"options of plugin {self.plugin!r} are refused: " + "; ".join(self.problems)


class SentencesError(PluginError):
    """A sentence file cannot be read, is no YAML, or is no set of intents."""

    code = "sentences"
