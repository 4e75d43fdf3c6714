"""What a signal is: a question to a backend and all that is needed to read the answer, said once, drawn anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from otel_kit.dashboards.datasources import PROMETHEUS, Datasource

if TYPE_CHECKING:
    from otel_kit.dashboards.links import Link


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where a value stops being good: orange from ``warning`` on, red from ``critical`` on; in the signal's unit."""

    warning: float | None = None
    critical: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One query, and one column where the signal is drawn as a table.

    Attributes:
        expr: PromQL, LogQL or TraceQL, with Grafana's variables.
        legend: What a series is called, ``{{label}}`` filled in; in a table the column's title.
        exemplars: Draw the exemplars of a histogram, each a link to its trace.
        unit: Grafana's unit id, where the column differs from the signal.
        thresholds: Where the column differs from the signal.
        states: Text and color of values that stand for states.
    """

    expr: str
    legend: str
    exemplars: bool = False
    unit: str | None = None
    thresholds: Thresholds | None = None
    states: tuple[tuple[float, str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A question worth a panel.

    Attributes:
        means: What the value says, one or two sentences.
        good: What it looks like when all is well.
        action: What to do when it does not.
        unit: Grafana's unit id, as ``s``, ``reqps``, ``percentunit``.
        labels: The labels that tell rows of a table apart, with their column titles.
        sort: The column by which a table is sorted, highest first.
        link_column: The column of a table that carries the links.
        colors: Fixed colors of series, by regular expression over their names.
        empty: What stands in the panel when the backend has nothing to answer.
    """

    title: str
    means: str
    good: str
    action: str
    queries: tuple[Query, ...]
    unit: str = "short"
    thresholds: Thresholds = Thresholds()
    labels: tuple[tuple[str, str], ...] = ()
    sort: str = ""
    link_column: str = ""
    links: tuple[Link, ...] = ()
    colors: tuple[tuple[str, str], ...] = ()
    empty: str = "nothing yet"
    datasource: Datasource = PROMETHEUS

    @property
    def description(self) -> str:
        """The panel's help text: meaning, what good looks like, what to do next."""
        return f"{self.means}\n\n**Good:** {self.good}\n\n**Otherwise:** {self.action}"


#: The dashboard's variables as matchers. ``environment`` may be unset, hence `.*` for All; every series has a service.
ENVIRONMENTS: Final = 'deployment_environment_name=~"$environment"'
SERVICES: Final = f'{ENVIRONMENTS}, service_name=~"$service"'
JOBS: Final = f'{SERVICES}, job_name=~"$job"'

#: Environments are never summed into one.
BY_SERVICE: Final = "deployment_environment_name, service_name"
BY_JOB: Final = "deployment_environment_name, job_name"


def zero_when_empty(expr: str, **labels: str) -> str:
    """``expr``, or a line at 0 with these labels when it has no series at all, so that calm does not read "No data"."""
    zero = "vector(0)"
    for label, value in labels.items():
        zero = f'label_replace({zero}, "{label}", "{value}", "", "")'
    return f"({expr}) or on () {zero}"
