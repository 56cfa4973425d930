"""Publishes an `intent` for every final that is a command."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from voiced.daemon import wire
from voiced.plugins.intents.matcher import Matcher
from voiced.plugins.intents.sentences import load_sentences
from voiced.plugins.sdk import Plugin, PluginContext

logger = logging.getLogger(__name__)


class IntentsOptions(BaseModel):
    """Options of the intents plugin."""

    model_config = ConfigDict(frozen=True)

    sentences: Path | None = None
    """Folder of own sentence files (`*.yaml`), merged into the built-in ones."""
    builtin: bool = True
    """Use the built-in car cockpit sentences."""
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    """Intents below it are not published."""


class IntentsPlugin(Plugin):
    """Recognises spoken commands by sentence templates, English and Mandarin built in."""

    name = "intents"
    topics = ("final/",)

    def setup(self, context: PluginContext) -> None:
        """Load the sentences."""
        super().setup(context)
        self._options = context.options(IntentsOptions)
        folder = self._options.sentences
        sets = load_sentences(folder and folder.expanduser(), builtin=self._options.builtin)
        self._matcher = Matcher(sets)
        logger.info("sentences loaded languages=%s", ",".join(self._matcher.languages))

    def on_final(self, message: wire.Final) -> None:
        """Match the text and publish what it means."""
        match = self._matcher.match(message.text, message.language)
        if match is None or match.confidence < self._options.min_confidence:
            return
        self.context.publish(
            wire.Intent(
                stream=message.stream,
                segment=message.segment,
                name=match.name,
                slots=match.slots,
                text=message.text,
                confidence=match.confidence,
            )
        )
