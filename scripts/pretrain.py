"""Pre-trains a backbone for `model.pretrained` on all classes at once, and writes it to a file.

    python scripts/pretrain.py --out backbone.safetensors [--half] [--part convs] [overrides]

The overrides are those of `python -m cl_bench.run experiment=pretrain`, which is DLCFT's recipe on
ImageNet32. They may choose another data set (`dataset=folder dataset.source.path=...`), network
(`model=reduced_resnet18`), length (`schedule.epochs=30`), precision (`runtime.precision=bf16`) or
another recipe (`experiment=vandeven/pretrain`).
The same command continues a run that was stopped. `--part` writes one part of the network alone, by
its name, such as the convolutions of `model=conv5`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cl_bench.base.exceptions import UserError
from cl_bench.config import compose
from cl_bench.config.build import build, make_method, make_stream
from cl_bench.config.command import run_command
from cl_bench.config.errors import Parser
from cl_bench.config.meta import meta_network
from cl_bench.engine import checkpoint
from cl_bench.engine.execution import Plan
from cl_bench.engine.job import make_plan, run
from cl_bench.models.prepare import part_of
from cl_bench.models.pretrained import Provenance, save
from cl_bench.results.record import RunRecord

REQUIRED = {  # so that every run can start from the backbone
    "dataset.tasks": 1,
    "evaluation.split": "test",
    "model.norm": "batch",
    "model.linearize": False,
    "model.head_mode": "bilinear",
    "model.lora": None,
    "model.random_features": None,
    "model.prompts": None,
}
RECIPE = ("model", "criterion", "optimizer", "schedule", "runtime", "seed")
SHAPE = (
    "_target_",
    "width",
    "depth",
    "channels",
    "last",
    "hidden",
    "activation",
)  # keys that a model must share with it


SOME_IMAGE = (3, 32, 32)  # of which a network is built to see its parts


def main() -> None:
    """Parse the command line, train and write the backbone."""
    parser = Parser(usage=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--half", action="store_true", help="store the weights in half precision")
    parser.add_argument(
        "--part", help="the part of the network to write; without it, all but the head"
    )
    asked, overrides = parser.parse_known_args()
    if asked.out.suffix != ".safetensors":
        parser.error(f"--out {asked.out}: must end in .safetensors")
    run_command(
        lambda: pretrain(overrides, asked.out, asked.half, asked.part), takes_overrides=False
    )


def pretrain(overrides: list[str], out: Path, half: bool, part: str | None) -> None:
    """Make the run unless it is finished, and write its network, or a part of it, to `out`."""
    planned = plan(overrides)
    if part is not None:
        net = meta_network(planned.resolved["model"], SOME_IMAGE, 10)
        if net is not None:
            part_of(net, part, "--part ")
    run(planned)
    export(planned, out, half, part)


def plan(overrides: list[str]) -> Plan:
    """The run of these overrides; UserError where no backbone can come of it."""
    chosen = any(word.startswith("experiment=") for word in overrides)
    words = overrides if chosen else ["experiment=pretrain", *overrides]
    cfg = compose.composed(*words, with_hydra=True)
    hydra = compose.take_hydra(cfg)
    for key, wanted in REQUIRED.items():
        if OmegaConf.select(cfg, key) != wanted:
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: a backbone needs {key}={wanted}")
    return make_plan(cfg, hydra)


def export(planned: Plan, out: Path, half: bool, part: str | None) -> None:
    """Write the network of a finished run, from its checkpoint, with its provenance."""
    cfg, record = planned.cfg, planned.folder.finished(planned.hash, planned.cfg.seed)
    machine = build(cfg.runtime, seed=cfg.seed)
    method = make_method(cfg, machine, make_stream(cfg, machine.device))
    identity = {"config": planned.hash, "seed": cfg.seed}
    state = checkpoint.load(planned.folder.checkpoint, machine.device, identity)
    assert record is not None and state is not None
    checkpoint.restore(method, state)
    save(method.learner.net, provenance(record, out.stem, part), out, half)
    print(f"backbone: {out}, {out.stat().st_size / 2**20:.1f} MiB; use model.pretrained={out}")


def provenance(record: RunRecord, name: str, part: str | None) -> Provenance:
    """What is stored with a backbone; it names no path, so that it can be published."""
    fixing = [key for key in SHAPE if part is None or key != "hidden"]
    plain, stream = record.config, record.stream
    transform = plain["dataset"]["transform"]
    origin = record.backbone and record.backbone["sha256"]
    plain["model"]["pretrained"] = record.backbone and record.backbone["name"]
    kept = ("sha256", "train_images", "test_images")
    known = {key: stream["provenance"][key] for key in ("layout", "order", "resize")}
    return Provenance(
        name=name,
        model={key: plain["model"][key] for key in fixing if key in plain["model"]},
        transform={key: transform[key] for key in ("mean", "std")},
        data={"name": name_of_data(plain), **{key: stream[key] for key in kept}, **known},
        recipe={key: plain[key] for key in RECIPE} | {"transform": transform, "from": origin},
        accuracy=record.metrics["ACC"],
        commit=record.measured["commit"],
        versions=record.measured["versions"],
        part=part,
    )


def name_of_data(plain: dict[str, Any]) -> str:
    """The name of the data set, or of the folder that it was read from."""
    path = plain["dataset"]["source"].get("path")
    return plain["dataset"]["name"] if path is None else Path(path).name


if __name__ == "__main__":
    main()
