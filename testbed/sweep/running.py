"""The loop of a sweep: every run that is left, batch by batch, each kept as soon as it has ended.

checked cells --plan--> batches --Stage.open--> devices --serve--> run folder, results.csv   (next run, next batch)
                                    └── a run that fails is noted, and the others go on on new devices
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from testbed.display import Display
from testbed.errors import CalibrationError, InputError, InterruptError, TestbedError, UnsupportedError
from testbed.options import Options, check_cpus, check_events
from testbed.sweep.cells import Cell, Sweep
from testbed.sweep.estimate import Estimate, duration_text
from testbed.sweep.folder import SweepFolder
from testbed.sweep.order import Batch, Run, plan
from testbed.sweep.session import DevicesFor, Stage
from testbed.workload import check

__all__ = ["Tally", "check_cells", "estimate_of", "run_sweep"]


@dataclass
class Tally:
    """How the runs of a sweep ended."""

    num_met: int = 0
    unmet: list[str] = field(default_factory=list)
    """Runs that ended, but not as expected."""
    failed: list[str] = field(default_factory=list)
    """Runs that did not end well; they begin again when the sweep is run again."""

    @property
    def ok(self) -> bool:
        """Whether nothing is to be complained of."""
        return not self.unmet and not self.failed


def check_cells(cells: Sequence[Cell], options: Options) -> None:
    """Let machine, runtime and workloads object before anything starts. Raises all that they say."""
    unsupported: dict[str, None] = {}
    faults: dict[str, None] = {}
    checked = []
    for cell in cells:
        for examine in (check_cpus, check_events):
            try:
                examine(cell.scenario, options)
            except UnsupportedError as error:
                unsupported[f"{cell.label}: {error}"] = None
        if cell.scenario.workload not in checked:
            checked.append(cell.scenario.workload)
            try:
                check(cell.scenario)
            except InputError as error:
                faults |= dict.fromkeys(f"{cell.label}: {fault}" for fault in error.faults)
    if faults:
        raise InputError([*faults, *unsupported])
    if unsupported:
        raise UnsupportedError("\n".join(unsupported))


def estimate_of(sweep: Sweep, folder: SweepFolder | None) -> Estimate:
    """Return what is known of durations: from finished runs, or from the sweep file."""
    estimate = Estimate(sweep.cell_s)
    known = {cell.id: cell for cell in sweep.cells}
    for (cell, _), duration_s in (folder.durations_s if folder else {}).items():
        estimate.add(known[cell].values, duration_s)
    return estimate


def run_sweep(
    sweep: Sweep, cells: Sequence[Cell], repeat: int, folder: SweepFolder, *, stage: Stage, display: Display
) -> Tally:
    """Run whatever is left of the ordered `cells`. A run that fails does not end the sweep; an interrupt does."""
    loop = _Loop(folder, plan(cells, repeat, folder.durations_s.keys()), estimate_of(sweep, folder), stage, display)
    try:
        loop.run_all()
    except (KeyboardInterrupt, InterruptError) as interrupt:
        kept = f"{len(folder.durations_s)} of {len(cells) * repeat} runs are in {folder.path}"
        raise InterruptError(f"interrupted; {kept}; the same command goes on from there") from interrupt
    return loop.tally


class _Loop:
    """A sweep under way."""

    def __init__(self, folder: SweepFolder, batches: list[Batch], estimate: Estimate, stage: Stage, display: Display):
        self._folder, self._batches, self._stage, self._display = folder, batches, stage, display
        self._estimate = estimate
        self._to_come = [run for batch in batches for run in batch.runs]
        self._num_runs = len(self._to_come)
        self.tally = Tally()

    def run_all(self) -> None:
        """Run all batches; new devices where a run has failed."""
        for batch in self._batches:
            left = list(batch.runs)
            while left:
                with self._stage.open(left) as devices:
                    while left and self._serve(devices, left):
                        pass

    def _serve(self, devices: DevicesFor, left: list[Run]) -> bool:
        """Serve the first of the runs that are left on some devices; return whether these are still as they were."""
        run = left.pop(0)
        self._announce(run)
        record = self._folder.record(run)
        try:
            outcome = devices.serve(run, record, following=left[0] if left else None)
        except InterruptError:
            raise
        except TestbedError as error:
            self._display.say(f"failed: {error}")
            self.tally.failed.append(f"{run.cell.label}, run {run.number}: {error}")
            return isinstance(error, CalibrationError)
        finally:
            self._to_come.remove(run)
        self._folder.finish(run, record)
        self._estimate.add(run.cell.values, self._folder.durations_s[run.key])
        unmet = [verdict.text for verdict in outcome.verdicts if not verdict.met]
        self.tally.unmet += [f"{run.cell.label}, run {run.number}: {text}" for text in unmet]
        self.tally.num_met += not unmet
        return True

    def _announce(self, run: Run) -> None:
        number = self._num_runs - len(self._to_come) + 1
        left = duration_text(self._estimate.total(each.cell.values for each in self._to_come))
        of_cell = f", run {run.number}" if run.number > 1 else ""
        self._display.say(f"run {number} of {self._num_runs}: {run.cell.label}{of_cell} (time left: {left})")
