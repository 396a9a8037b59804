"""A saved view and a report of a W&B project, made by code with wandb-workspaces, and the chart that both show.

Every name in them is one that a run logs (``README.md`` lists them). Saved again, both are written over: W&B finds what
is there by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engrams.reports.errors import UserError
from engrams.reports.wandb.service import Service, ServiceError
from engrams.reports.wandb.settings import PROJECT

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

TITLE = "Engrams"
VIEW, REPORT = "nw-engramsview-v", "engramsreport"
"""W&B's own names of the two, by which they are found again."""
GROUP = "series"
"""Key of the configuration: the lines of a chart, each of runs that differ in their seeds alone."""
MATRIX = "accuracy_matrix"
"""The table of a run that the heat map shows."""
MOST_EXPERIENCES = 100
"""That the heat map knows the columns of; those that a table lacks are not drawn."""

Panels = dict[str, list[Any]]


class NoDashboards(UserError):
    """The dashboards cannot be built; the message is one line that says what to do."""


def heat_map() -> dict[str, Any]:
    """Returns the chart of accuracy matrices in Vega-Lite: one a run, each cell with its figures where one points.

    W&B makes its data of the tables of the runs that are shown: a row of each, with the run's name.
    """
    judged_on = [f"exp_{index:02d}" for index in range(MOST_EXPERIENCES)]
    experience = {"field": "experience", "type": "ordinal"}
    trained = {"field": "trained_experience", "type": "ordinal", "title": "after training on"}
    accuracy = {"field": "accuracy", "type": "quantitative"}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"name": "wandb"},
        "transform": [
            {"fold": judged_on, "as": ["judged", "accuracy"]},
            {"filter": "isValid(datum.accuracy)"},
            {"calculate": "toNumber(substring(datum.judged, 4))", "as": "experience"},
            {"calculate": "round(100 * datum.accuracy)", "as": "percent"},
        ],
        "facet": {"field": "name", "type": "nominal", "title": None},
        "columns": 3,
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
        "spec": {
            "width": 220,
            "height": 180,
            "encoding": {
                "x": experience | {"title": "accuracy (%) on experience", "axis": {"labelAngle": 0}},
                "y": trained,
                "tooltip": [
                    {"field": "name", "type": "nominal", "title": "run"},
                    trained,
                    experience | {"title": "accuracy on"},
                    accuracy | {"format": ".4f"},
                ],
            },
            "layer": [
                {
                    "mark": "rect",
                    "encoding": {"color": accuracy | {"scale": {"scheme": "viridis", "domain": [0, 1]}}},
                },
                {
                    "mark": {"type": "text", "fontSize": 10},
                    "encoding": {
                        "text": {"field": "percent", "type": "quantitative"},
                        "color": {"condition": {"test": "datum.accuracy < 0.6", "value": "white"}, "value": "black"},
                    },
                },
            ],
        },
    }


def chart() -> str:
    """Returns the name of the heat map's chart in W&B; a chart that is changed is another one."""
    return f"engrams-accuracy-matrix-{hashlib.sha256(json.dumps(heat_map()).encode()).hexdigest()[:8]}"


def panels(entity: str) -> Panels:
    """Returns section -> its panels.

    Args:
        entity: who has the heat map's chart.

    Raises:
        NoDashboards: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        raise NoDashboards("wandb-workspaces is not installed; pip install 'engrams[dashboards]'") from error

    def over_experiences(name: str, title: str) -> Any:
        """Returns a line a strategy of a protocol, the mean over its seeds, with a band of one standard deviation."""
        return wr.LinePlot(
            title=title,
            x="experience",
            y=[name],
            groupby=wr.Config(GROUP),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            title_x="experiences trained on before",
        )

    def final(name: str, title: str) -> Any:
        return wr.BarPlot(
            title=title,
            metrics=[name],
            groupby=wr.Config(GROUP),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_bars_to_show=40,
        )

    return {
        "Comparison": [
            final("final/ACC", "ACC at the end"),
            final("final/forgetting", "forgetting at the end"),
            final("final/BWT", "backward transfer"),
            final("final/seconds", "seconds a run"),
        ],
        "Accuracy matrices": [
            wr.CustomChart(
                query={"summaryTable": {"tableKey": MATRIX}},
                chart_name=f"{entity}/{chart()}",
                layout=wr.Layout(w=24, h=12),
            ),
            wr.MediaBrowser(title="R[i, j]: on experience j after training on i", media_keys=["accuracy_matrix_image"]),
        ],
        "Over experiences": [
            over_experiences("ACC", "ACC over the experiences so far"),
            over_experiences("forgetting", "forgetting over the experiences so far"),
        ],
        "Stability and plasticity": [
            wr.ScatterPlot(
                title="what is learned, and what is forgotten",
                x=wr.SummaryMetric("final/learning_accuracy"),
                y=wr.SummaryMetric("final/forgetting"),
            )
        ],
        "Generated": [
            wr.MediaBrowser(title="after every experience", media_keys=["generated", "generated_animation"]),
            over_experiences("frechet_distance", "Frechet distance from real images"),
        ],
        "While it trains": [
            wr.LinePlot(title="loss by epoch", x="epoch", y=["loss/training", "loss/generator"], title_x="epoch")
        ],
    }


def workspace(entity: str, project: str = PROJECT) -> Workspace:
    """Returns the view: the runs by protocol and strategy, best first, and the panels beside them."""
    made = panels(entity)
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[
            ws.Section(name=name, panels=found, is_open=index < 3) for index, (name, found) in enumerate(made.items())
        ],
        settings=ws.WorkspaceSettings(x_axis="experience", max_runs=100),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Config("protocol"), ws.Config(GROUP)],
            order=[ws.Ordering(ws.Summary("final/ACC"), ascending=False)],
            pinned_columns=[f"summary:final/{name}" for name in ("ACC", "forgetting", "learning_accuracy", "seconds")],
        ),
    )


def report(entity: str, project: str = PROJECT, parity: str = "") -> Report:
    """Returns the report.

    Args:
        entity: whose project.
        project: its name.
        parity: the parity board in Markdown, if it is to be in the report.
    """
    made = panels(entity)
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [
        wr.P("Accuracies are fractions; a band or a whisker is one standard deviation over seeds."),
    ]
    for name, found in made.items():
        runs = wr.Runset(name="runs", groupby=["config.protocol.value", f"config.{GROUP}.value"])
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=found)]
    if parity:
        blocks += [wr.H2("Published figures beside ours"), wr.MarkdownBlock(parity)]
    return wr.Report(entity=entity, project=project, title=TITLE, description="Catastrophic forgetting", blocks=blocks)


def specification(entity: str, project: str, parity: str = "") -> dict[str, Any]:
    """Returns what W&B is sent: ``workspace`` and ``report``, as the library's models make them, and ``heat_map``."""
    return {
        "heat_map": heat_map(),
        "workspace": _spec(workspace(entity, project)._to_model().spec),
        "report": _spec(report(entity, project, parity)._to_model().spec),
    }


def _spec(model: Any) -> dict[str, Any]:
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))


_FIND = """query Views($entity: String, $project: String!, $name: String, $type: String) {
  project(name: $project, entityName: $entity) {
    allViews(viewType: $type, viewName: $name) { edges { node { id name } } }
  }
}"""
_SAVE = """mutation UpsertView($id: ID, $entity: String, $project: String, $type: String, $name: String,
  $title: String, $spec: String) {
  upsertView(input: {id: $id, entityName: $entity, projectName: $project, name: $name, displayName: $title,
    type: $type, spec: $spec, createdUsing: WANDB_SDK}) { view { id name } inserted }
}"""


_CHART = """mutation CreateCustomChart($entity: String!, $chartName: String!, $displayName: String!,
  $chartType: String!, $access: String!, $spec: JSONString!) {
  createCustomChart(input: {entity: $entity, name: $chartName, displayName: $displayName, type: $chartType,
    access: $access, spec: $spec}) { chart { id } }
}"""


def save(service: Service, entity: str, project: str, parity: str = "") -> list[str]:
    """Saves both, in place of those that are there, and returns lines: their addresses, and what could not be made.

    The library gives a view a new name, and so a new view, each time; here both have names of their own.

    Raises:
        ServiceError: the service cannot be used.
        NoDashboards: there is no such project, or wandb-workspaces is not installed.
    """
    specs = specification(entity, project, parity)
    wanted: Sequence[tuple[str, str, str]] = (("workspace", "project-view", VIEW), ("report", "runs", REPORT))
    lines = []
    for what, kind, name in wanted:
        asked = {"entity": entity, "project": project, "type": kind, "name": name}
        found = service.ask(_FIND, asked)["project"]
        if found is None:
            raise NoDashboards(f"there is no project {entity}/{project} in W&B; a run that is sent makes it")
        ids = [edge["node"]["id"] for edge in found["allViews"]["edges"] if edge["node"]["name"] == name]
        sent = asked | {"id": ids[0] if ids else None, "title": TITLE, "spec": json.dumps(specs[what])}
        view = service.ask(_SAVE, sent)["upsertView"]["view"]
        short = VIEW.removeprefix("nw-").removesuffix("-v")
        place = f"workspace?nw={short}" if what == "workspace" else f"reports/{TITLE}--{view['id']}"
        lines.append(f"{service.web}/{entity}/{project}/{place}")
    return lines + _make_chart(service, entity)


def _make_chart(service: Service, entity: str) -> list[str]:
    """Makes the heat map's chart, unless it is there; a line, where the service will not have it."""
    asked = {
        "entity": entity,
        "chartName": chart(),
        "displayName": f"{TITLE}: accuracy matrix",
        "chartType": "vega2",
        "access": "PRIVATE",
        "spec": json.dumps(heat_map()),
    }
    try:
        service.ask(_CHART, asked)
    except ServiceError as error:
        if error.status == 409 or "exist" in str(error):
            return []
        return [f"the heat map of the accuracy matrices was not made ({error}); their pictures are beside it"]
    return []
