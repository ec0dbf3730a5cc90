"""How a running network looks: devices and links as tables that fit a terminal, or as a line of text. Pure.

Snapshot, width, height --picture--> two tables, side by side where there is room
         --line_of--> one line without control codes, for everything that is no terminal
"""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from testbed.live_devices import Use
from testbed.live_links import LinkNow
from testbed.live_sample import DeviceNow, Snapshot

__all__ = ["line_of", "picture"]

SIDE_BY_SIDE = 116
"""Characters that both tables take next to each other."""
ROOMY = 60
"""From here on there is room for bars and limits."""
BAR_WIDTH = 10
FRAME_LINES = 2
"""A table's heading and its line for what is left out."""
WIDTHS = {"state": 9, "CPU": 12, "memory": 15, "link": 7, "Mbps": 14}
"""Characters of columns whose figures grow and shrink, so that nothing jumps."""
STATE_STYLES = {
    "running": "green",
    "up": "green",
    "paused": "yellow",
    "returning": "yellow",
    "down": "red",
    "gone": "red",
}


def picture(snapshot: Snapshot, *, width: int, height: int) -> RenderableType:
    """Show a snapshot in a place of so many characters and lines."""
    if not snapshot.devices or height <= FRAME_LINES:
        return Text("")
    roomy = width >= ROOMY
    if width >= SIDE_BY_SIDE and snapshot.links:
        pair = Table.grid(padding=(0, 4))
        lines = height - FRAME_LINES
        pair.add_row(_devices(snapshot.devices, lines, roomy), _links(snapshot.links, lines, roomy))
        return pair
    lines = height - 2 * FRAME_LINES - 1
    if not snapshot.links or lines < 2:
        return _devices(snapshot.devices, height - FRAME_LINES, roomy)
    num_devices = min(len(snapshot.devices), lines - min(len(snapshot.links), lines // 2))
    links = _links(snapshot.links, lines - num_devices, roomy)
    return Group(_devices(snapshot.devices, num_devices, roomy), Text(""), links)


def line_of(snapshot: Snapshot) -> str:
    """Say a snapshot in one line, in figures so rough that an idle network stays the same."""
    states = [device.state for device in snapshot.devices]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    cpus = [device.use.cpus for device in snapshot.devices if device.use.cpus is not None]
    memory = [device.use.memory_bytes for device in snapshot.devices if device.use.memory_bytes is not None]
    parts = [f"devices: {counts or 'none'}"]
    parts += [f"{sum(cpus):.1f} CPU"] if cpus else []
    parts += [f"{sum(memory) / 1e6:.0f} MB"] if memory else []
    if snapshot.links:
        rates = sum(link.rate_bps or 0.0 for link in snapshot.links) / 1e6
        lost, overflowed = sum(link.lost for link in snapshot.links), sum(link.overflowed for link in snapshot.links)
        parts.append(f"{len(snapshot.links)} links: {rates:.1f} Mbps, {lost} lost, {overflowed} overflowed")
    return ", ".join(parts)


def _devices(devices: Sequence[DeviceNow], lines: int, roomy: bool) -> RenderableType:
    wide = ["state", "", "CPU", "memory"] if roomy else ["state", "CPU", "memory"]
    table = _table("device", *wide, widths=WIDTHS if roomy else {})
    for device in devices[:lines]:
        state = Text(device.state, STATE_STYLES.get(device.state, ""))
        use = device.use
        bar = [_bar(use.cpus, use.cpus_limit)] if roomy else []
        table.add_row(device.name, state, *bar, _cpu_text(use, roomy), _memory_text(use, roomy))
    return _with_rest(table, len(devices) - lines, "devices", None)


def _links(links: Sequence[LinkNow], lines: int, roomy: bool) -> RenderableType:
    """Show all links if there is room, else those that carry most."""
    wide = ["", "Mbps", "lost", "overflowed"] if roomy else ["Mbps", "lost", "full"]
    table = _table("link", *wide, widths=WIDTHS if roomy else {})
    ordered = list(links)
    if len(links) > lines:
        ordered.sort(key=lambda link: -(link.rate_bps or 0.0))
    for link in ordered[:lines]:
        bar = [_bar(link.rate_bps, link.limit_bps)] if roomy else []
        counts = (Text(str(count), "" if count else "dim") for count in (link.lost, link.overflowed))
        table.add_row(f"{link.source}→{link.destination}", *bar, _rate_text(link, roomy), *counts)
    left = ordered[lines:]
    rates = sum(link.rate_bps or 0.0 for link in left) / 1e6
    return _with_rest(table, len(left), "other links", f"{rates:.1f} Mbps, {sum(link.lost for link in left)} lost")


def _table(*headings: str, widths: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        text = heading in ("", "device", "state", "link")
        width = widths.get(heading, len(heading))
        table.add_column(heading, justify="left" if text else "right", no_wrap=True, min_width=width)
    return table


def _with_rest(table: Table, num_left: int, what: str, detail: str | None) -> RenderableType:
    if num_left <= 0:
        return table
    text = f"… {num_left} {what}" + (f": {detail}" if detail else "")
    return Group(table, Text(escape(text), "dim", overflow="ellipsis", no_wrap=True))


def _bar(value: float | None, limit: float | None) -> RenderableType:
    if value is None or not limit:
        return Text(" " * BAR_WIDTH)
    return ProgressBar(
        total=limit, completed=min(value, limit), width=BAR_WIDTH, complete_style="cyan", finished_style="yellow"
    )


def _cpu_text(use: Use, roomy: bool) -> str:
    used = "–" if use.cpus is None else f"{use.cpus:.2f}"
    return f"{used} of {use.cpus_limit:g}" if roomy and use.cpus_limit is not None else used


def _memory_text(use: Use, roomy: bool) -> str:
    if use.memory_bytes is None:
        return "–"
    limit = f" of {use.memory_limit_bytes / 1e6:.0f}" if roomy and use.memory_limit_bytes is not None else ""
    return f"{use.memory_bytes / 1e6:.0f}{limit} MB"


def _rate_text(link: LinkNow, roomy: bool) -> str:
    rate = "–" if link.rate_bps is None else f"{link.rate_bps / 1e6:.2f}"
    return f"{rate} of {link.limit_bps / 1e6:g}" if roomy and link.limit_bps is not None else rate
