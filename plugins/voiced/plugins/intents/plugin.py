"""Publishes an `intent` for every final that is a command, or earlier where that is wanted."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from voiced.daemon import wire
from voiced.plugins.errors import SentencesError
from voiced.plugins.intents.matcher import Match, Matcher
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
    eager: bool = False
    """Act on `eager_final`, which the daemon publishes where `bus.eager` is set: the daemon then
    ends the segment sooner. What was published is not taken back when speech goes on."""


class IntentsPlugin(Plugin):
    """Recognises spoken commands by sentence templates, English and Mandarin built in."""

    name = "intents"
    start_from = "now"
    max_age_s = 5.0  # an act on the car that comes later surprises whoever sits in it
    topics = ("final/", "eager_final/")

    def setup(self, context: PluginContext) -> None:
        """Load the sentences."""
        super().setup(context)
        self._options = context.options(IntentsOptions)
        self._early: dict[str, tuple[int, Match]] = {}
        """By stream: the newest segment with an intent that did not wait for the final."""
        self._matcher = self._load()

    def on_reload(self) -> None:
        """Load the sentences again; files that cannot be used leave those of before."""
        try:
            self._matcher = self._load()
        except SentencesError as error:
            logger.error("sentences stay as they were: %s", error)

    def _load(self) -> Matcher:
        folder = self._options.sentences
        sets = load_sentences(folder and folder.expanduser(), builtin=self._options.builtin)
        matcher = Matcher(sets)
        logger.info("sentences loaded languages=%s", ",".join(matcher.languages))
        return matcher

    def on_final(self, message: wire.Final) -> None:
        """Match the text and publish what it means, unless that was done before."""
        if message.recovered is not None:
            return  # said before the daemon was started: too late to act on
        early = self._early.pop(message.stream, None)
        match = self._match(message)
        if match is not None and early != (message.segment, match):
            self._say(message, match)

    def on_eager_final(self, message: wire.EagerFinal) -> None:
        """Do so before the segment has ended."""
        match = self._match(message) if self._options.eager else None
        if match is not None and self._early.get(message.stream) != (message.segment, match):
            self._early[message.stream] = (message.segment, match)
            self._say(message, match)

    def _match(self, message: wire.Final | wire.EagerFinal) -> Match | None:
        match = self._matcher.match(message.text, message.language)
        if match is None or match.confidence < self._options.min_confidence:
            return None
        return match

    def _say(self, message: wire.Final | wire.EagerFinal, match: Match) -> None:
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
