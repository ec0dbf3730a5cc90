"""`astra plan` and `astra probe`: what strategies would take, without running them, and how fast a device is."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from astra.cli.terminal import failures_reported, say
from astra.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from astra.models import ModelShape
    from astra.planning.scenario import Setting
    from astra.planning.speed import Speed

__all__ = ["plan", "probe"]

PLAIN_WIDTH = 160
"""Columns of a table that is not printed on a terminal."""

_ScenarioArgument = typer.Argument(metavar="SCENARIO", help="YAML file of the testbed that runs `astra bench`.")


def plan(
    scenario: Annotated[Path, _ScenarioArgument],
    speed: Annotated[
        Path | None, typer.Option("--speed", metavar="FILE", help="What `astra probe --out` wrote on the device.")
    ] = None,
    gflops: Annotated[
        float | None, typer.Option("--gflops", help="Thousand million operations a second of one core.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of a table.")] = False,
) -> None:
    """Predict every strategy of a scenario on its devices and links, and say which is the fastest; run nothing."""
    with failures_reported():
        if found := _option_faults(speed, gflops):
            raise ConfigError(found)
        from astra.advice import advise, rows, sentence
        from astra.models import planned_shape
        from astra.planning.scenario import read_scenario
        from astra.planning.speed import Device

        setting = read_scenario(scenario)
        config, shape = setting.config, planned_shape(setting.config.model)
        core = _speed_of_a_core(shape, speed, gflops)
        prospects = advise(
            list(dict.fromkeys(config.candidates)),
            config.model,
            shape,
            config.input,
            weights=config.weights(len(setting.cpus), [cpus or 1.0 for cpus in setting.cpus]),
            devices=[Device(core, cpus) for cpus in setting.cpus],
            links=setting.links,
        )
        if as_json:
            typer.echo(json.dumps({"gflops": core.gflops, "strategies": rows(prospects)}, indent=2))
            return
        from rich.console import Console

        typer.echo(_describe(setting, shape, core))
        Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(_table(rows(prospects)))
        typer.echo(sentence(prospects))


def probe(
    scenario: Annotated[
        Path | None, typer.Argument(metavar="SCENARIO", help="Take its model; default: ViT-Base.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="For `astra plan --speed`.")] = None,
) -> None:
    """Measure how fast one core of this machine computes, in about a second."""
    with failures_reported():
        from astra.config import ModelConfig
        from astra.models import planned_shape
        from astra.planning.scenario import read_scenario

        model = ModelConfig(size="base", image_size=512) if scenario is None else read_scenario(scenario).config.model
        measured = _measure(planned_shape(model))
        for kind, seconds in measured.seconds_per.items():
            typer.echo(f"{kind:<12} {1e9 * seconds:12.4g} ns")
        typer.echo(f"{measured.gflops:.3g} GFLOP/s a core, {measured.measured_on}")
        if out is not None:
            try:
                measured.write(out)
            except OSError as error:
                raise ConfigError(
                    [f"{out}: the file must be writable, got {error}; name another with --out"]
                ) from error
            say(str(out))


def _option_faults(speed: Path | None, gflops: float | None) -> list[str]:
    found, where = [], "astra plan"
    if speed is not None and gflops is not None:
        found.append(f"{where}: --gflops must be left out where --speed is given, got {gflops!r}; keep one of the two")
    if gflops is not None and not 0 < gflops < math.inf:
        advice = "`astra probe` says that of this machine"
        found.append(f"{where}: --gflops must be a finite number greater than 0, got {gflops!r}; {advice}")
    return found


def _speed_of_a_core(shape: "ModelShape", file: Path | None, gflops: float | None) -> "Speed":
    """Take what was given, or measure."""
    from astra.planning.speed import REFERENCE, Speed

    if file is not None:
        return Speed.read(file)
    return _measure(shape) if gflops is None else REFERENCE.scaled(gflops)


def _measure(shape: "ModelShape") -> "Speed":
    """Measure this machine with one thread."""
    import torch

    from astra.probe import measure_speed, sample_block, small_enough

    torch.set_num_threads(1)
    probed = small_enough(shape)
    return measure_speed(probed, [sample_block(probed)])


def _describe(setting: "Setting", shape: "ModelShape", core: "Speed") -> str:
    """Say in a line what is predicted."""
    shares = sorted({"no limit" if cpus is None else f"{cpus:g} CPU" for cpus in setting.cpus})
    link = setting.links.default
    ends = [f"{1e3 * link.delay_s:g} ms" if link.delay_s else "", f"{100 * link.loss:g} % lost" if link.loss else ""]
    rate = "links without a limit" if link.rate_bps == float("inf") else f"{link.rate_bps / 1e6:g} Mbps a link"
    words = [f"{shape.family} {setting.config.model.size or ''}".strip(), f"{shape.num_content_tokens} tokens"]
    words += [f"{len(setting.cpus)} devices ({', '.join(shares)})", f"{core.gflops:.3g} GFLOP/s a core", rate]
    words += [end for end in ends if end] + (["and exceptions"] if setting.links.exceptions else [])
    return ", ".join(words)


def _table(found: list[dict[str, Any]]) -> "Table":
    """Lay out the rows of `advice.rows`, times in seconds."""
    from rich.box import SIMPLE
    from rich.table import Table

    heads = ("latency", "over single", "compute", "encode", "network", "round trips", "busiest link", "memory")
    table = Table(box=SIMPLE, show_edge=False)
    table.add_column("strategy")
    for head in heads:
        table.add_column(head, justify="right")
    for row in found:
        name = f"{row['strategy']} {row['settings']}".strip()
        if row["latency_predicted_s"] is None:
            table.add_row(name, *("–" for _ in heads))
            continue
        speedup = row["speedup_predicted"]
        times = (f"{row[part]:.3f}" for part in ("compute_s", "encode_s", "network_s", "round_trips_s"))
        cells = [
            f"{row['latency_predicted_s']:.3f}",
            "–" if speedup is None else f"{speedup:.2f}×",
            *times,
            f"{row['busiest_link_bytes'] / 1e6:.3f} MB",
            f"{row['memory_mb']:.0f} MB",
        ]
        table.add_row(name, *cells, style="bold" if row["fastest"] else "")
    obstacles = [
        f"{row['strategy']} {row['settings']}".strip() + f": {row['obstacle']}" for row in found if row["obstacle"]
    ]
    table.caption, table.caption_justify = "\n".join(obstacles) or None, "left"
    return table
