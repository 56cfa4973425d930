"""Settings of what is kept on disk."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from voiced.daemon.section import Section


class JournalSettings(Section):
    """What is kept on disk, so that nothing said is lost."""

    enabled: bool | None = Field(
        default=None,
        description="Whether last words are kept; absent: where the service manager gives a state "
        "folder (`STATE_DIRECTORY`), and nowhere else.",
    )
    folder: str | None = Field(
        default=None,
        description="Folder of journal and spool; absent: `STATE_DIRECTORY`, else "
        "`${XDG_STATE_HOME:-~/.local/state}/voiced`.",
    )
    text: bool = Field(
        default=True, description="Whether the journal has the texts, or only that there were some."
    )
    keep_days: float = Field(
        default=30.0,
        gt=0,
        le=36_500,
        description="Older entries are deleted; age is counted, not read off dates.",
    )
    max_mb: int = Field(
        default=256, ge=1, le=1_000_000, description="The oldest entries above this are deleted."
    )
    survives: Literal["crash", "power_cut"] = Field(
        default="power_cut",
        description="What costs nothing that was published: a crash of the daemon, or a power cut "
        "too (each result then waits for the disk).",
    )
    spool: bool = Field(
        default=True,
        description="Whether the audio of segments without an answer is kept until they have one, "
        "and answered after a crash.",
    )
    spool_mb: int = Field(
        default=64, ge=1, le=1_000_000, description="Audio above this is not kept."
    )
    spool_hours: float = Field(
        default=24.0,
        gt=0,
        le=87_600,
        description="Older audio, counted in the same way, fails with `spool_expired`.",
    )
