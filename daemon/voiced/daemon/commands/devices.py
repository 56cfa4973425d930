"""`voiced devices`: the input devices there are."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from voiced.audio.errors import DeviceNotFound


def devices(as_json: bool) -> int:
    """Print the input devices and return 0.

    A terminal gets a table, a pipe one line per device: number, name, sound system, channels,
    rate in Hz, and `default` or nothing, separated by tabs.

    Raises:
        PortAudioMissing: The library is not installed.
        DeviceNotFound: There is none.
    """
    from voiced.audio.sources.microphone import list_devices

    found = list_devices()
    if not found:
        raise DeviceNotFound(None, ())
    if as_json:
        print(json.dumps([asdict(device) for device in found], ensure_ascii=False, indent=2))
        return 0
    rows = [
        (
            str(device.index),
            device.name,
            device.host_api,
            str(device.channels),
            str(device.rate_hz),
            "default" if device.is_default else "",
        )
        for device in found
    ]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return 0

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("#", "Device", "Sound system", "Channels", "Rate (Hz)", ""):
        is_number = heading in ("#", "Channels", "Rate (Hz)")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return 0
