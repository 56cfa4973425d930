"""Base class of the settings' sections."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the configuration file: strict, frozen, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)
