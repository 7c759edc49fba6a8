"""What a sweep says, once all of its runs are done: Hydra callbacks of `experiment=...`.

They read the records below output_dir and write table.csv, figure.png and page.md beside them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cl_bench.base import files
from cl_bench.base.escape import visible
from cl_bench.base.exceptions import UserError
from cl_bench.results.record import read_all, value_or_none
from cl_bench.studies.page import Page
from cl_bench.studies.values import Record, journal, moments, number, require_one, word


class Study(Callback):
    """A page from the records of a sweep."""

    def __init__(self, title: str, variant: list[str]) -> None:
        self.title, self.variant = title, variant

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the page; nothing where no run was finished."""
        folder = files.absolute(config.output_dir)
        read = read_all(folder)
        found = [(place, visible(run)) for place, run in read.runs]
        for line in [*read.damaged, *read.contradicting]:
            print(f"left out: {visible(line)}", file=sys.stderr)
        try:
            if found:
                print(self.page(found).write(folder) + visible(f"files: {folder.resolve()}"))
        except UserError as error:
            print(f"error: {visible(str(error))}", file=sys.stderr)

    def page(self, found: list[tuple[Path, Record]]) -> Page:
        """Of all records and the folders that they lie in."""
        raise NotImplementedError

    def label(self, record: Record) -> str:
        """The values that tell one variant from another."""
        words = [word(record, key) for key in self.variant]
        return " ".join(w for w in words if w is not None)


class Grid(Study):
    """Accuracy over one key for each variant; the value is chosen on the validation split.

    `published`: percentages of others by variant, to stand beside.
    """

    def __init__(self, title: str, variant: list[str], x: str, published: dict[str, float]) -> None:
        super().__init__(title, variant)
        self.x, self.published = x, published

    def page(self, found: list[tuple[Path, Record]]) -> Page:
        cells: dict[tuple[str, float], dict[str, list[Any]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for _, record in found:
            split = value_or_none(record["config"], "evaluation.split")
            key = (self.label(record), number(record, self.x))
            if (acc := record["metrics"]["ACC"]) is not None:
                cells[key][split].append(100 * acc)
            cells[key][f"{split} configs"].append(record["hash"])
            cells[key]["seconds"].append(sum(record["measured"]["train_seconds"]))
            cells[key]["gradients"].append(record.get("gradients_per_sample"))
        rows = [self._row(key, cells[key]) for key in sorted(cells)]
        for variant in dict.fromkeys(row["variant"] for row in rows):
            mine = [row for row in rows if row["variant"] == variant and row["val"] is not None]
            whole = [row for row in mine if row["val n"] == max(r["val n"] for r in mine)]
            if whole:  # a value of which a seed has diverged is not chosen
                max(whole, key=lambda row: row["val"])["chosen"] = "*"
        name = self.x.rpartition(".")[2]
        findings = [
            f"{row['variant']}: {name} {row['value']:g}, {_said(row)}"
            for row in rows
            if row["chosen"]
        ]
        if not findings:
            findings = ["nothing was chosen: no run on the validation split"]
        return Page(self.title, findings, rows, lambda f: self._draw(f, rows))

    def _row(self, key: tuple[str, float], cell: dict[str, list[float]]) -> dict[str, Any]:
        row: dict[str, Any] = {"variant": key[0], "value": key[1]}
        for split in ("val", "test"):
            require_one(cell.get(f"{split} configs", []), f"{key[0]}, {self.x}={key[1]:g}")
            values = cell.get(split, [])
            row |= moments(split, values) | {f"{split} n": len(values)}
        row["published"] = self.published.get(key[0])
        row |= {"gradients": cell["gradients"][0], "train s": mean(cell["seconds"])}
        return row | {"chosen": ""}

    def _draw(self, figure: Any, rows: list[dict[str, Any]]) -> None:
        axes = figure.add_subplot(xlabel=self.x, ylabel="ACC (%)", xscale="log", title=self.title)
        for variant in dict.fromkeys(row["variant"] for row in rows):
            split = (
                "test" if any(r["test n"] > 1 for r in rows if r["variant"] == variant) else "val"
            )
            part = [r for r in rows if r["variant"] == variant and r[split] is not None]
            spread = [r[f"{split} sd"] or 0 for r in part]
            x, y = [r["value"] for r in part], [r[split] for r in part]
            axes.errorbar(x, y, spread, fmt="o-", capsize=3, label=f"{variant} ({split})")
        axes.legend()
        axes.grid(alpha=0.3)


class Table(Study):
    """ACC and BWT over the seeds, a row for each combination of what is ablated.

    `variant`: the keys; a column each, under the key's last name that says something. `also`: what
    else of a record stands beside, as metrics.forgetting or method.growth, as percentages.
    """

    def __init__(self, title: str, variant: list[str], also: Sequence[str] = ()) -> None:
        super().__init__(title, variant)
        self.also = also
        self.columns = [k.removesuffix("._target_").rpartition(".")[2] for k in variant]

    def page(self, found: list[tuple[Path, Record]]) -> Page:
        cells: dict[tuple[str, ...], list[Record]] = defaultdict(list)
        for _, record in found:
            if record["metrics"]["ACC"] is not None:
                cells[tuple(word(record, key) or "none" for key in self.variant)].append(record)
        rows = [self._row(key, cells[key]) for key in sorted(cells)]
        if not rows:
            raise UserError("output_dir: no run there has measured ACC")
        best = max(rows, key=lambda row: row["ACC"])
        chosen = [f"{column}={best[column]}" for column in self.columns]
        findings = [f"highest: {', '.join(chosen)}, ACC {best['ACC']:.2f} (n = {best['n']})"]
        return Page(self.title, findings, rows, lambda f: self._draw(f, rows))

    def _row(self, key: tuple[str, ...], cell: list[Record]) -> dict[str, Any]:
        row: dict[str, Any] = dict(zip(self.columns, key, strict=True))
        require_one([record["hash"] for record in cell], " ".join(key))
        for name in ("ACC", "BWT"):
            known = (record["metrics"][name] for record in cell)
            row |= moments(name, [100 * value for value in known if value is not None])
        for beside in self.also:
            values = [value_or_none(record, beside) for record in cell]
            row |= moments(beside.rpartition(".")[2], [100 * v for v in values if v is not None])
        return row | {"gradients": cell[0].get("gradients_per_sample"), "n": len(cell)}

    def _draw(self, figure: Any, rows: list[dict[str, Any]]) -> None:
        axes = figure.add_subplot(xlabel="ACC (%)", title=self.title)
        names = [" ".join(row[c] for c in self.columns) for row in rows]
        axes.barh(names, [r["ACC"] for r in rows], xerr=[r["ACC sd"] or 0 for r in rows])
        axes.invert_yaxis()


class Traces(Study):
    """A probe's value along training, or a metric after each task, for each variant."""

    def __init__(self, title: str, variant: list[str], quantity: str, scale: str) -> None:
        super().__init__(title, variant)
        self.quantity, self.scale = quantity, scale

    def page(self, found: list[tuple[Path, Record]]) -> Page:
        traces = {}
        for folder, record in found:
            flat = [row | row.get("metrics", {}) for row in journal(folder / "metrics.jsonl")]
            seen = [row for row in flat if self.quantity in row and row["event"] != "step"]
            name = f"{self.label(record)} seed {record['seed']}"
            if name in traces:
                raise UserError(f"output_dir: {name} was run there twice; choose one of its own")
            if seen:
                traces[name] = seen
        rows = [self._row(name, seen) for name, seen in traces.items()]
        if not rows:
            raise UserError(f"output_dir: no run there has measured {self.quantity}")
        return Page(self.title, list(map(self._said, rows)), rows, lambda f: self._draw(f, traces))

    def _row(self, name: str, seen: list[dict[str, Any]]) -> dict[str, Any]:
        values = [row[self.quantity] for row in seen]
        row = {"variant": name, "first": values[0], "largest": max(values), "last": values[-1]}
        row["last / largest"] = values[-1] / max(values) if max(values) else None
        beside = {
            k: seen[-1][k] for k in ("loss", "accuracy") if isinstance(seen[-1].get(k), float)
        }
        return row | {f"last {k}": v for k, v in beside.items()}

    def _said(self, row: dict[str, Any]) -> str:
        training = (
            f" at training accuracy {row['last accuracy']:.3f}" if "last accuracy" in row else ""
        )
        share = row["last / largest"]
        of_it = "" if share is None else f" ({share:.3g} of the largest)"
        return (
            f"{row['variant']}: {self.quantity} {row['first']:.4g} at first, {row['largest']:.4g} "
            f"at most, {row['last']:.4g} at last{of_it}{training}"
        )

    def _draw(self, figure: Any, traces: dict[str, list[dict[str, Any]]]) -> None:
        axes = figure.add_subplot(ylabel=self.quantity, yscale=self.scale, title=self.title)
        for name, seen in traces.items():
            steps = "step" in seen[0]
            axes.set_xlabel("step" if steps else "task")
            at = [row["step" if steps else "task"] for row in seen]
            axes.plot(at, [row[self.quantity] for row in seen], ".-", label=name)
        axes.legend()
        axes.grid(alpha=0.3)


def _said(row: dict[str, Any]) -> str:
    spread = "" if row["test sd"] is None else f" +- {row['test sd']:.2f}"
    test = "" if row["test"] is None else f", test {row['test']:.2f}{spread} (n = {row['test n']})"
    return f"validation {row['val']:.2f}{test}"
