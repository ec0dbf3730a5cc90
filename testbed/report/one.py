"""The report of one run."""

from testbed.report import network, outcome, surroundings
from testbed.report.folder import RunFolder
from testbed.report.model import Report
from testbed.report.time_spent import time_spent

__all__ = ["report_of_run"]


def report_of_run(run: RunFolder) -> Report:
    """Put together all that a run folder has to say."""
    return Report(
        title=run.name,
        setting=surroundings.setting(run.scenario),
        status=run.status,
        when=surroundings.when(run),
        error=str(run.summary.get("error") or ""),
        facts=tuple(outcome.headline(run)),
        verdicts=outcome.verdicts(run),
        sections=(
            outcome.summary(run),
            outcome.latency(run),
            outcome.break_even_of_one(run),
            time_spent(run),
            network.traffic(run),
            network.calibration(run),
            network.events(run),
            network.rates(run),
            surroundings.environment(run),
            surroundings.again(run),
            surroundings.others(run),
        ),
    )
