"""`testbed report`: a run folder, or a folder of many, as one HTML page that opens anywhere.

    folder --folder--> RunFolder --one, many--> Report (model) --page--> report.html
             (what is there,       (sections: what to say,      (how it looks)
              and what is not)      charts by testbed.plots)

Reads what runs have written and nothing else, so it works on a run that was cut off, or that another machine did.
"""

import os
import re
from pathlib import Path

from testbed.errors import InputError
from testbed.plot_canvas import standing_alone
from testbed.report.folder import RunFolder, find_runs
from testbed.report.many import report_of_runs
from testbed.report.model import Report
from testbed.report.one import report_of_run
from testbed.report.page import render

__all__ = ["REPORT_FILE", "is_cheap", "read_report", "write_charts", "write_report"]

REPORT_FILE = "report.html"
CHEAP_BYTES = 8 << 20
"""Of a run folder's tables and trace: a matter of two seconds. Nine strategies with a trace of 6 MB took 2.6 s of CPU
time on a machine under load, the smoke scenario 0.5 s."""


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a folder, by default into it; return where it is. It belongs to the folder's owner.

    Raises InputError if the folder holds no run, or `out` cannot be written.
    """
    page = render(read_report(folder))
    out = folder / REPORT_FILE if out is None else out
    try:
        out.write_text(page)
        if out.parent == folder and (owner := folder.stat()).st_uid != out.stat().st_uid:
            os.chown(out, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise InputError([f"--out: must be a file that can be written, got '{out}' ({error.strerror})"]) from error
    return out


def write_charts(folder: Path, out: Path) -> list[Path]:
    """Write the charts of a folder's report as files that stand alone, named by section and title; return them.

    Raises InputError as `write_report` does.
    """
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for section in read_report(folder).sections:
            for figure in section.figures:
                words = "-".join(re.findall(r"[a-z0-9.]+", figure.title.lower().replace("→", " to ")))
                written.append(out / f"{section.key}-{words}.svg")
                written[-1].write_text(standing_alone(figure.svg))
    except OSError as error:
        raise InputError([f"--charts: must be a folder that can be written, got '{out}' ({error.strerror})"]) from error
    return written


def read_report(folder: Path) -> Report:
    """Read a folder of one run or of several. Raises InputError if there is none in it."""
    runs = [RunFolder.read(path) for path in find_runs(folder)]
    if runs[0].path == folder:
        return report_of_run(runs[0])
    return report_of_runs(folder, runs)


def is_cheap(folder: Path) -> bool:
    """Whether a run's report is a matter of a second or two."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) <= CHEAP_BYTES
