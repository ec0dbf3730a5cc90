"""What pytest sees of the plugin: options, the mark `scenario`, the fixtures `scenario` and `make_scenario`.

Every pytest of the environment loads this, so nothing is imported here that a suite without scenarios would wait for.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from testbed.pytest_plugin.runnable import RunnableScenario

__all__ = ["make_scenario", "pytest_addoption", "pytest_configure", "scenario"]

MARK = (
    "scenario(source, changes=None, *, runtime, uncapped, calibrate, go_on, timeout_s): give the test a scenario to run"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the group `testbed`."""
    group = parser.getgroup("testbed", "devices on shaped links (astra-testbed)")
    group.addoption(
        "--testbed-results",
        metavar="DIR",
        help="keep run folders here, to be read later; default: pytest's folder for temporary files",
    )
    group.addoption(
        "--testbed-runtime",
        choices=("netns", "docker"),
        default="netns",
        help="where devices live, unless a test says; default: %(default)s",
    )
    group.addoption("--testbed-uncapped", action="store_true", help="run without CPU and memory limits")
    group.addoption("--testbed-require", action="store_true", help="fail tests that this machine cannot run")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", MARK)


@pytest.fixture(scope="session")
def make_scenario(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Callable[..., RunnableScenario]":
    """Return a function that makes a runnable scenario of a path, a mapping or a `Scenario`.

    Its arguments are those of the mark. It may be used by fixtures of any scope, so that several tests share a run.
    """
    from testbed.pytest_plugin import runnable

    chosen = request.config.getoption("--testbed-results")
    results = Path(chosen).absolute() if chosen else tmp_path_factory.mktemp("testbed", numbered=True)
    common = runnable.Options(
        folder=request.config.rootpath,
        results=results,
        runtime=request.config.getoption("--testbed-runtime"),
        uncapped=request.config.getoption("--testbed-uncapped"),
        require=request.config.getoption("--testbed-require"),
    )

    def make(source: "runnable.Source", changes: Mapping[str, Any] | None = None, **options: Any) -> "RunnableScenario":
        __tracebackhide__ = True
        return runnable.make(source, changes or {}, replace(common, **options), _test_name())

    return make


@pytest.fixture
def scenario(request: pytest.FixtureRequest, make_scenario: "Callable[..., RunnableScenario]") -> "RunnableScenario":
    """The scenario that the test's mark `scenario` names. Modules may have a fixture of this name instead."""
    mark = request.node.get_closest_marker("scenario")
    if mark is None:
        raise pytest.UsageError(
            f'{request.node.nodeid}: must be marked @pytest.mark.scenario("file.yaml"), got no mark; or define a '
            "fixture `scenario` that calls make_scenario"
        )
    return make_scenario(*mark.args, **mark.kwargs)


def _test_name() -> str:
    """Name the test that runs now, or for which a fixture is made."""
    file, _, test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0].partition("::")
    return f"{Path(file).stem}-{test}"
