"""`voiced status`: a running daemon as people see it: streams, levels, engine."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voiced.daemon.commands.talk import ServerUnreachable
from voiced.daemon.errors import DaemonError

if TYPE_CHECKING:
    from rich.console import RenderableType

TIMEOUT_S = 5.0
_METER_WIDTH = 20
_METER_FLOOR_DBFS = -60.0


class StatusRefused(DaemonError):
    """The daemon answers, and does not tell."""

    code = "refused"


def status(
    url: str,
    *,
    once: bool,
    as_json: bool,
    token: str | None = None,
    authority: Path | None = None,
    interval_s: float = 1.0,
) -> int:
    """Show a daemon until Ctrl-C, or once.

    Raises:
        ServerUnreachable: Nobody answers at `url`.
        StatusRefused: A token is missing, or what listens there is no voiced daemon.
    """
    facts = fetch(url, token, authority)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
        return 0
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once or not console.is_terminal:
        console.print(render(facts))
        return 0
    with Live(render(facts), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(render(fetch(url, token, authority)), refresh=True)


def fetch(url: str, token: str | None, authority: Path | None) -> dict[str, Any]:
    """Ask the daemon. Errors as those of `status`."""
    request = urllib.request.Request(url)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    context = None
    if url.startswith("https:"):
        context = ssl.create_default_context(cafile=authority)
    # No proxy: the token is for the daemon.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        *(() if context is None else (urllib.request.HTTPSHandler(context=context),)),
    )
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            facts = json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(500).decode(errors="replace").strip()
        raise StatusRefused(f"{url} answers HTTP {error.code}: {body}") from error
    except urllib.error.URLError as error:
        raise ServerUnreachable(url, str(error.reason).lower()) from error
    except (OSError, ValueError) as error:
        raise ServerUnreachable(url, f"what listens there is no voiced daemon: {error}") from error
    if not isinstance(facts, dict) or "engine" not in facts:
        raise StatusRefused(f"{url} is not the status of a voiced daemon")
    return facts


def render(facts: dict[str, Any]) -> RenderableType:
    """Draw one picture of the facts."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    engine, streams = facts["engine"], facts["streams"]
    state = "ready" if engine["is_ready"] else f"not ready: {engine['reason']}"
    head = Text.assemble(
        (f"voiced {facts['version']}", "bold"),
        f"  pid {facts['pid']}  up {_duration(facts['uptime_s'])}  "
        f"{facts['rss_bytes'] / 2**20:.0f} MiB\n",
        f"engine {state}  {engine['bundle']}\n",
        f"waiting: {engine['queued_finals']} finals, {engine['queued_partials']} partials, "
        f"oldest {engine['oldest_final_age_s']:.1f} s; restarts {engine['totals']['restarts']}\n",
        f"{len(streams)} of {facts['max_streams']} streams",
    )
    if clients := facts.get("clients"):
        head.append(
            f"; {clients['connections']} connections, {clients['parked']} resumable, "
            f"{clients['waiting_bytes']} bytes wait for clients"
        )
    if microphone := facts.get("microphone"):
        head.append(f"\nmicrophone {microphone['state']} {microphone.get('reason') or ''}".rstrip())
    table = Table(box=None, pad_edge=False)
    for name in ("stream", "audio", "level", "finals", "failed", "behind", "said last"):
        table.add_column(name, no_wrap=name != "said last")
    for each in streams:
        table.add_row(
            Text(each["stream"]),
            _duration(each["audio_ms"] / 1000),
            Text(meter(each["level_dbfs"]), "green" if each["is_speech"] else "dim"),
            str(each["finals"]),
            str(each["failed"]),
            f"{each['backlog_s']:.1f} s",
            Text(each.get("text", "")),  # what was said is no markup
        )
    return Group(head, Text(""), table)


def meter(level_dbfs: float) -> str:
    """Draw a level as a bar of fixed width."""
    share = min(1.0, max(0.0, 1 - level_dbfs / _METER_FLOOR_DBFS))
    full = round(share * _METER_WIDTH)
    return "█" * full + "·" * (_METER_WIDTH - full) + f" {level_dbfs:6.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
