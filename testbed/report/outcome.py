"""What came out: the summary, and how latency and speed-up spread over the requests of one run."""

from collections.abc import Sequence

from testbed import plots
from testbed.display import format_value
from testbed.record import Row
from testbed.report.folder import RunFolder
from testbed.report.model import Fact, Figure, Section, Verdict, table
from testbed.report.rows import Key, identity, key_of, labelled, middle, numbers, percentile

__all__ = ["SPEEDUP", "break_even_of_one", "by_label", "headline", "latency", "measured", "summary", "verdicts"]

LATENCY, SPEEDUP = "latency_p50_s", "speedup_vs_single"


def headline(run: RunFolder) -> list[Fact]:
    """Return what one wants to know first."""
    rows = {label: row for label, row in labelled(run.rows("summary")).items() if numbers([row], LATENCY)}
    facts = []
    if rows:
        label = min(rows, key=lambda each: numbers([rows[each]], LATENCY)[0])
        facts.append(Fact("fastest", label, f"{format_value(LATENCY, rows[label][LATENCY])} a request, median"))
    gains = {label: row for label, row in rows.items() if numbers([row], SPEEDUP) not in ([], [1.0])}
    if gains:
        label = max(gains, key=lambda each: numbers([gains[each]], SPEEDUP)[0])
        facts.append(Fact("best over one device", format_value(SPEEDUP, gains[label][SPEEDUP]), label))
    checked = run.rows("calibration")
    if checked:
        good = sum(row.get("ok") is True for row in checked)
        facts.append(Fact("links true", f"{good} of {len(checked)}", "measurements within tolerance"))
    links = run.rows("links")
    if links:
        sent, lost = sum(numbers(links, "bytes")), sum(numbers(links, "lost")) + sum(numbers(links, "overflowed"))
        facts.append(Fact("on all links", format_value("bytes", sent), f"{lost:,.0f} packets lost"))
    return facts


def verdicts(run: RunFolder) -> tuple[Verdict, ...]:
    """Return what the scenario expected, and whether it came true."""
    return tuple(Verdict(bool(each["met"]), str(each["text"])) for each in run.summary.get("expectations", ()))


def by_label(run: RunFolder) -> dict[str, Row]:
    """Return the rows of the summary by label."""
    return labelled(run.rows("summary"))


def measured(run: RunFolder) -> dict[str, tuple[Row, plots.Spread]]:
    """Return the rows of the summary that have a latency, with its spread over requests."""
    rows = by_label(run)
    return {
        spread.label: (rows[spread.label], spread) for spread in _spreads(run.rows("summary"), run.rows("requests"))
    }


def summary(run: RunFolder) -> Section:
    """Return the table that the program reported."""
    rows = run.rows("summary")
    missing = () if rows else (run.why_missing("summary.csv"),)
    tables = (table("summary.csv", rows),) if rows else ()
    lead = "Latency is from the input in the first device's memory to the answer in its memory." if rows else ""
    return Section("summary", "Summary", lead, missing, tables=tables)


def latency(run: RunFolder) -> Section:
    """Return how long requests took, and how that compares with one device."""
    rows, requests = run.rows("summary"), run.rows("requests")
    title, missing, figures = "Latency and speed-up", [], []
    if not rows:
        missing.append(f"{run.why_missing('summary.csv')} Medians are of the requests that were served.")
        rows = _medians(requests)
    spreads = _spreads(rows, requests)
    if not spreads:
        missing.append(f"No latencies: neither summary.csv ({LATENCY}) nor requests.csv (latency_s) has any.")
    else:
        if not requests:
            missing.append(f"No spread: {run.why_missing('requests.csv')}")
        note = "Large dot: median; bar: middle half of the requests; small dots: single requests."
        log = _spans_decades(spreads)
        figures.append(Figure("Seconds a request", plots.spreads(spreads, x_label="seconds", log=log), note))
        gains = _gains(rows, spreads)
        if gains:
            chart = plots.spreads(gains, x_label="times as fast as one device", rule=1.0, log=_spans_decades(gains))
            note = "Median of one device over each request's time. Right of the dashed line, splitting wins."
            figures.append(Figure("Speed-up over one device", chart, note))
        else:
            missing.append(f"No speed-up: summary.csv has no column {SPEEDUP}, or the run had no strategy `single`.")
    return Section("latency", title, missing=tuple(missing), figures=tuple(figures))


def break_even_of_one(run: RunFolder) -> Section:
    """Say that one run cannot tell."""
    links = run.scenario.get("links") or {}
    rate = (links.get("default") or {}).get("rate_mbps")
    here = f"; here every link asks for {rate:g} Mbps unless overridden" if isinstance(rate, int | float) else ""
    text = (
        f"One run has one setting of its links{here}. Run the scenario at several rates (testbed sweep, with "
        "links.default.rate_mbps in its matrix) and ask for the report of the folder that holds those runs."
    )
    return Section("break-even", "Break-even", missing=(text,))


def _spreads(rows: Sequence[Row], requests: Sequence[Row]) -> list[plots.Spread]:
    """Return median, quartiles and single latencies of every row of the summary."""
    columns = identity(rows)
    spreads = []
    for label, row in labelled(rows).items():
        median = numbers([row], LATENCY)
        key = key_of(row, columns)
        single = numbers([each for each in requests if key_of(each, columns) == key], "latency_s")
        if median:
            low, high = (percentile(single, 25), percentile(single, 75)) if single else (median[0], median[0])
            spreads.append(plots.Spread(label, median[0], low, high, single))
    return spreads


def _medians(requests: Sequence[Row]) -> list[Row]:
    """Make rows as of a summary from requests alone."""
    columns = identity(requests)
    found: dict[Key, list[Row]] = {}
    for row in requests:
        found.setdefault(key_of(row, columns), []).append(row)
    latencies = {key: numbers(rows, "latency_s") for key, rows in found.items()}
    return [
        {**dict(zip(columns, key, strict=True)), LATENCY: middle(values)} for key, values in latencies.items() if values
    ]


def _gains(rows: Sequence[Row], spreads: Sequence[plots.Spread]) -> list[plots.Spread]:
    """Turn latencies into speed-ups, by what the summary says of their medians."""
    found = labelled(rows)
    gains = []
    for spread in spreads:
        value = numbers([found[spread.label]], SPEEDUP)
        if value:
            one_s = value[0] * spread.value
            single = [one_s / each for each in spread.single]
            gains.append(plots.Spread(spread.label, value[0], one_s / spread.high, one_s / spread.low, single))
    return gains


def _spans_decades(spreads: Sequence[plots.Spread]) -> bool:
    """Whether values differ so much that only a logarithmic axis shows the small ones."""
    values = [middle([spread.value, spread.low, spread.high]) for spread in spreads]
    return min(values) > 0 and max(values) > 8 * min(values)
