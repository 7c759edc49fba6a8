"""python scripts/workspace.py <entity> [<project>]: saves a wandb workspace that compares methods.

It shows ACC over the tasks, the metrics at the end, cost, and accuracy matrices; the seeds of a
config are one line with its standard deviation. Needs a wandb key, and the package wandb-workspaces
(pip install -e ".[workspace]").
"""

from __future__ import annotations

import sys
from typing import Any

from cl_bench.config.errors import Parser

try:
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces
except ModuleNotFoundError:
    sys.exit('scripts/workspace.py: pip install -e ".[workspace]" first')

SUMMARY = ("ACC", "BWT", "forgetting", "LA", "gradients_per_sample", "peak_mib")


def over_tasks(metric: str, title: str) -> Any:
    """A plot of a metric over the tasks: mean and standard deviation over the seeds of a config."""
    return panels.LinePlot(
        title=title,
        x="task",
        y=[f"eval/{metric}"],
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def bars(metric: str) -> Any:
    """A bar plot of a final metric, with a bar for each config."""
    return panels.BarPlot(
        title=metric,
        metrics=[panels.SummaryMetric(metric)],
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def view(entity: str, project: str) -> workspaces.Workspace:
    """The workspace, not saved yet; the seeds of a config are a group."""
    curves = [over_tasks("ACC", "ACC after each task"), over_tasks("BWT", "BWT after each task")]
    cost = panels.ScatterPlot(
        title="ACC against gradients per training image",
        x=panels.SummaryMetric("gradients_per_sample"),
        y=panels.SummaryMetric("ACC"),
        log_x=True,
    )
    loss = panels.LinePlot(title="Training loss", x="step", y=["train/loss"], smoothing_factor=0.6)
    matrices = panels.MediaBrowser(media_keys=["accuracy"], num_columns=3)
    sections = [
        workspaces.Section(name="Over the tasks", panels=curves, is_open=True),
        workspaces.Section(name="At the end", panels=[bars(m) for m in SUMMARY[:3]], is_open=True),
        workspaces.Section(name="Cost", panels=[cost], is_open=True),
        workspaces.Section(name="Accuracy matrices", panels=[matrices], is_open=False),
        workspaces.Section(name="Training", panels=[loss, panels.RunComparer(diff_only="split")]),
    ]
    runs = workspaces.RunsetSettings(
        groupby=[workspaces.Metric("Group")],
        pinned_columns=[f"summary:{name}" for name in SUMMARY],
    )
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="cl_bench: methods",
        sections=sections,
        runset_settings=runs,
    )


def main() -> None:
    """Save the workspace and print its address."""
    parser = Parser(description="Save a wandb workspace that compares methods.")
    parser.add_argument("entity")
    parser.add_argument("project", nargs="?", default="cl_bench")
    parser.add_argument("--show", action="store_true", help="print it as JSON instead of saving it")
    options = parser.parse_args()
    made = view(options.entity, options.project)
    if options.show:
        print(made._to_model().model_dump_json(indent=1))
        return
    try:
        print(made.save().url)
    except Exception as error:  # wandb's errors have no common base class
        reason = str(error).splitlines()[0]
        sys.exit(f"wandb did not save it: {reason}; `wandb login`, and check entity and project")


if __name__ == "__main__":
    main()
