"""A report as one HTML page that needs nothing else: no network, no other file.

    Report --render--> templates/report.html.j2 + style.css + sort.js --> text

Everything is escaped but our own style, script and charts.
"""

from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from testbed.plot_canvas import DARK, LIGHT
from testbed.report.model import Report

__all__ = ["render"]

TEMPLATES = "templates"


def render(report: Report) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("testbed.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # of our own making: text in it was escaped by matplotlib
    page = environment.get_template("report.html.j2")
    return page.render(report=report, light=LIGHT, dark=DARK, style=_own("style.css"), script=_own("sort.js"))


def _own(name: str) -> Markup:
    return Markup(resources.files("testbed.report").joinpath(TEMPLATES, name).read_text())  # noqa: S704
