"""A backbone for `model.pretrained`: a run of all classes at once, and its network as one file.

    python scripts/pretrain.py --out backbone.safetensors [--half] [overrides]

The overrides are those of `python -m cl_bench.run experiment=pretrain` (DLCFT's recipe on
ImageNet32): another data set (`dataset=folder dataset.source.path=...`), network
(`model=reduced_resnet18`), length (`schedule.epochs=30`), precision (`runtime.precision=bf16`).
The same command continues a run that was stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from cl_bench.base.exceptions import UserError
from cl_bench.config import compose
from cl_bench.config.build import build, make_method, make_stream
from cl_bench.config.command import run_command
from cl_bench.config.errors import Parser
from cl_bench.engine import checkpoint
from cl_bench.engine.execution import Plan
from cl_bench.engine.job import plan, run
from cl_bench.models.pretrained import Provenance, save
from cl_bench.results.record import RunRecord

PLAIN = {  # what every run can start from, tested on data of its own
    "dataset.tasks": 1,
    "evaluation.split": "test",
    "model.norm": "batch",
    "model.linearize": False,
    "model.head_mode": "bilinear",
}
RECIPE = ("model", "criterion", "optimizer", "schedule", "runtime", "seed")
SHAPED = ("_target_", "width", "hidden", "activation")  # what a backbone needs of a network


def main() -> None:
    parser = Parser(usage=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--half", action="store_true", help="in half precision")
    asked, overrides = parser.parse_known_args()
    if asked.out.suffix != ".safetensors":
        parser.error(f"--out {asked.out}: must end in .safetensors")
    run_command(lambda: pretrain(overrides, asked.out, asked.half), takes_overrides=False)


def pretrain(overrides: list[str], out: Path, half: bool) -> None:
    """The run, where it is not done yet, and its file."""
    planned = composed(overrides)
    run(planned)
    export(planned, out, half)


def composed(overrides: list[str]) -> Plan:
    """The run that the overrides describe."""
    cfg = compose.composed("experiment=pretrain", *overrides, with_hydra=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg.hydra
    for key, wanted in PLAIN.items():
        if OmegaConf.select(cfg, key) != wanted:
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: a backbone needs {key}={wanted}")
    return plan(cfg)


def export(planned: Plan, out: Path, half: bool) -> None:
    """The network of a finished run, from its checkpoint, and what its record says."""
    cfg, record = planned.cfg, planned.folder.finished(planned.hash, planned.cfg.seed)
    machine = build(cfg.runtime, seed=cfg.seed)
    method = make_method(cfg, machine, make_stream(cfg, machine))
    identity = {"config": planned.hash, "seed": cfg.seed}
    held = checkpoint.load(planned.folder.checkpoint, machine.device, identity)
    assert record is not None and held is not None
    checkpoint.restore(method, held)
    save(method.learner.net, facts(record, out.stem), out, half)
    print(f"backbone: {out}, {out.stat().st_size / 2**20:.1f} MiB; use model.pretrained={out}")


def facts(record: RunRecord, name: str) -> Provenance:
    """No path and no place of the machine: it may be published."""
    plain, stream = record.config, record.stream
    transform = plain["dataset"]["transform"]
    origin = record.backbone and record.backbone["sha256"]
    plain["model"]["pretrained"] = record.backbone and record.backbone["name"]
    kept = ("sha256", "train_images", "test_images")
    known = {key: stream["provenance"][key] for key in ("layout", "order", "resize")}
    return Provenance(
        name=name,
        model={key: plain["model"][key] for key in SHAPED if key in plain["model"]},
        transform={key: transform[key] for key in ("mean", "std")},
        data={"name": name_of_data(plain), **{key: stream[key] for key in kept}, **known},
        recipe={key: plain[key] for key in RECIPE} | {"transform": transform, "from": origin},
        accuracy=record.metrics["ACC"],
        commit=record.measured["commit"],
        versions=record.measured["versions"],
    )


def name_of_data(plain: dict[str, Any]) -> str:
    """The data set, or the folder that it was read from."""
    path = plain["dataset"]["source"].get("path")
    return plain["dataset"]["name"] if path is None else Path(path).name


if __name__ == "__main__":
    main()
