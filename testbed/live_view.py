"""How a running network looks: devices and links in columns that fit a terminal, or as a line of text. Pure.

    Snapshot, width, height --picture--> two blocks of lines, side by side where there is room
             --line_of--> one line without control codes, for everything that is no terminal

Rich's tables measure and wrap every cell several times; twice a second, that was a tenth of a core for 16 devices. Here
a line is a list of cells of a known width, of which rich only has to make colours.
"""

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from testbed.live_devices import Use
from testbed.live_links import LinkNow
from testbed.live_sample import DeviceNow, Snapshot

__all__ = ["Picture", "line_of", "picture"]

Cell = tuple[str, str]
"""Text, and its style as rich writes it."""
Line = list[Cell]

SIDE_BY_SIDE = 116
"""Characters that both blocks take next to each other."""
ROOMY = 60
"""From here on there is room for bars and limits."""
BAR_WIDTH = 10
GAP = "  "
BETWEEN = "    "
"""Blocks that are side by side."""
FRAME_LINES = 2
"""A block's heading and its line for what is left out."""
WIDTHS = {"state": 9, "CPU": 12, "memory": 15, "link": 7, "Mbps": 14}
"""Characters of columns whose figures grow and shrink, so that nothing jumps."""
LEFT = ("", "device", "state", "link")
STATE_STYLES = {
    "running": "green",
    "up": "green",
    "paused": "yellow",
    "returning": "yellow",
    "down": "red",
    "gone": "red",
}
DIM = "dim"


class Picture:
    """Lines for rich to print, cut at a width."""

    def __init__(self, lines: Sequence[Line], width: int):
        self._lines, self._width = lines, width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Yield them."""
        for line in self._lines:
            left = self._width
            for text, style in line:
                if text and left > 0:
                    yield Segment(text[:left], console.get_style(style))
                left -= len(text)
            yield Segment.line()


def picture(snapshot: Snapshot, *, width: int, height: int) -> Picture:
    """Show a snapshot in a place of so many characters and lines."""
    roomy = width >= ROOMY
    lines = height - 2 * FRAME_LINES - 1
    if not snapshot.devices or height <= FRAME_LINES:
        return Picture([], width)
    if not snapshot.links or (lines < 2 and width < SIDE_BY_SIDE):
        return Picture(_devices(snapshot.devices, height - FRAME_LINES, roomy), width)
    if width >= SIDE_BY_SIDE:
        left = _devices(snapshot.devices, height - FRAME_LINES, roomy)
        return Picture(_side_by_side(left, _links(snapshot.links, height - FRAME_LINES, roomy)), width)
    num_devices = min(len(snapshot.devices), lines - min(len(snapshot.links), lines // 2))
    above = _devices(snapshot.devices, num_devices, roomy)
    return Picture([*above, [], *_links(snapshot.links, lines - num_devices, roomy)], width)


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
        lost, overflowed = sum(link.lost for link in snapshot.links), sum(link.overflowed for link in snapshot.links)
        parts.append(f"{len(snapshot.links)} links: {_mbps(snapshot.links)}, {lost} lost, {overflowed} overflowed")
    return ", ".join(parts)


def _devices(devices: Sequence[DeviceNow], lines: int, roomy: bool) -> list[Line]:
    rows = []
    for device in devices[:lines]:
        use = device.use
        name: list[Line] = [[(device.name, "")], [(device.state, STATE_STYLES.get(device.state, ""))]]
        bar = [_bar(use.cpus, use.cpus_limit)] if roomy else []
        rows.append([*name, *bar, [(_cpu_text(use, roomy), "")], [(_memory_text(use, roomy), "")]])
    headings = ["device", "state", *([""] if roomy else []), "CPU", "memory"]
    return _block(headings, rows, _rest(len(devices) - lines, "devices"), roomy)


def _links(links: Sequence[LinkNow], lines: int, roomy: bool) -> list[Line]:
    """Show all links if there is room, else those that carry most."""
    ordered = list(links)
    if len(links) > lines:
        ordered.sort(key=lambda link: -(link.rate_bps or 0.0))
    rows = []
    for link in ordered[:lines]:
        bar = [_bar(link.rate_bps, link.limit_bps)] if roomy else []
        counts: list[Line] = [[(str(count), "" if count else DIM)] for count in (link.lost, link.overflowed)]
        rows.append([[(f"{link.source}→{link.destination}", "")], *bar, [(_rate_text(link, roomy), "")], *counts])
    headings = ["link", *([""] if roomy else []), "Mbps", "lost", "overflowed" if roomy else "full"]
    left = ordered[lines:]
    detail = f": {_mbps(left)}, {sum(link.lost for link in left)} lost"
    return _block(headings, rows, _rest(len(left), "other links", detail), roomy)


def _block(headings: Sequence[str], rows: Sequence[Sequence[Line]], rest: list[Line], roomy: bool) -> list[Line]:
    """Align cells in columns, numbers to the right."""
    columns = [[[(heading, DIM)] for heading in headings], *rows]
    widths = [
        max(WIDTHS.get(heading, 0) if roomy else 0, *(_length(row[number]) for row in columns))
        for number, heading in enumerate(headings)
    ]
    lines: list[Line] = []
    for row in columns:
        line: Line = []
        for heading, cell, width in zip(headings, row, widths, strict=True):
            pad = (" " * (width - _length(cell)), "")
            line += [*cell, pad, (GAP, "")] if heading in LEFT else [pad, *cell, (GAP, "")]
        lines.append(line)
    return [*lines, *rest]


def _side_by_side(left: list[Line], right: list[Line]) -> list[Line]:
    width = max(map(_length, left))
    pairs = range(max(len(left), len(right)))
    rows = ((left[n] if n < len(left) else [], right[n] if n < len(right) else []) for n in pairs)
    return [[*one, (" " * (width - _length(one)) + BETWEEN, ""), *other] for one, other in rows]


def _rest(num_left: int, what: str, detail: str = "") -> list[Line]:
    return [[(f"… {num_left} {what}{detail}", DIM)]] if num_left > 0 else []


def _length(line: Line) -> int:
    return sum(len(text) for text, _ in line)


def _bar(value: float | None, limit: float | None) -> Line:
    if value is None or not limit:
        return [(" " * BAR_WIDTH, "")]
    full = round(BAR_WIDTH * min(1.0, value / limit))
    return [("━" * full, "yellow" if full == BAR_WIDTH else "cyan"), ("─" * (BAR_WIDTH - full), DIM)]


def _mbps(links: Sequence[LinkNow]) -> str:
    return f"{sum(link.rate_bps or 0.0 for link in links) / 1e6:.1f} Mbps"


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
