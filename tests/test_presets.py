"""The values of experiment=emcl/published/<name>, as public code and EMCL's table II have them."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import composed
from omegaconf import OmegaConf

from cl_bench.config.nodes import CONF, leaves

FOLDER = "emcl/published"
MLP: dict[str, Any] = {"schedule.epochs": 1, "model.hidden": [100, 100], "evaluation.when": "final"}
FROM_MER = MLP | {"schedule.batch_size": 1, "model.init": "xavier"}
FROM_LA_MAML = MLP | {"schedule.batch_size": 10, "model.init": "kaiming"}
PERMUTATIONS: dict[str, Any] = {"dataset.tasks": 20, "dataset.train_per_task": 1000}
MANY: dict[str, Any] = {"dataset.tasks": 100, "dataset.train_per_task": 200}
# the square of the mean gradient of ten samples, and a penalty without 1/2 for each task
GEMS_EWC: dict[str, Any] = {
    "method.curvature._target_": "cl_bench.curvature.diagonal.BatchedFisher",
    "method.curvature.batch_size": 10,
    "method.curvature.samples": 10,
    "method.merging._target_": "cl_bench.curvature.merging.one_per_task",
    "method.step": "explicit",
}
LA_MAMLS_AGEM: dict[str, Any] = {
    "method.reference": "tasks",
    "method.clip": 2.0,
    "method.reference_compat": True,
    "optimizer.lr": 0.03,
}
MNIST_LA_MAML: dict[str, Any] = {
    "method.order": "first",
    "method.slice_size": 1,
    "method.replay": 10,
    "method.clip": 2.0,
    "method.clip_inner": False,
    "method.inner_rates": "nonnegative",
    "method.buffer.replacement": True,
}
PC_CNN: dict[str, Any] = {  # dataloaders/idataset.py: iCIFAR100
    "dataset.tasks": 20,
    "dataset.order": "random",
    "dataset.train_per_task": 2250,
    "dataset.transform.mean": [0.5071, 0.4867, 0.4408],
    "dataset.transform.std": [0.2675, 0.2565, 0.2761],
    "dataset.transform.padding": 4,
    "dataset.transform.flip": True,
    "dataset.transform.brightness": pytest.approx(63 / 255),
    "dataset.transform.augment": "once",
    "model.channels": [160, 160, 160],
    "model.hidden": [320, 320],
    "schedule.batch_size": 10,
    "schedule.epochs": 1,
}
RESNET: dict[str, Any] = {
    "dataset.tasks": 20,
    "dataset.train_per_task": None,
    "dataset.order": "natural",
    "dataset.transform.augment": "anew",
    "dataset.transform.padding": 0,
    "model.width": 20,
    "optimizer.lr": 0.03,
    "schedule.batch_size": 10,
}
PRESETS: dict[str, dict[str, Any]] = {
    "gem_pmnist": FROM_MER
    | PERMUTATIONS
    | {"optimizer.lr": 0.01, "method.margin": 0.0, "method.ridge": 0.0}
    | {"method.buffer.per_task": 10},
    "gem_manypmnist": FROM_MER
    | MANY
    | {"optimizer.lr": 0.003, "method.margin": 0.1, "method.ridge": 0.0}
    | {"method.buffer.per_task": 5},
    "ewc_pmnist": FROM_MER
    | PERMUTATIONS
    | GEMS_EWC
    | {"optimizer.lr": 0.01, "method.strength": 2 * 10.0},
    "ewc_manypmnist": FROM_MER
    | MANY
    | GEMS_EWC
    | {"optimizer.lr": 0.003, "method.strength": 2 * 1.0},
    "mer_pmnist": FROM_MER
    | PERMUTATIONS
    | {"optimizer.lr": 0.03, "method.beta": 0.03, "method.gamma": 1.0, "method.algorithm": 1}
    | {"method.replay": 10, "method.batches": 10, "method.buffer.capacity": 200}
    | {"method.buffer.replacement": True},
    "mer_manypmnist": FROM_MER
    | MANY
    | {"optimizer.lr": 0.03, "method.beta": 0.03, "method.gamma": 1.0, "method.algorithm": 1}
    | {"method.replay": 5, "method.batches": 10, "method.buffer.capacity": 500}
    | {"method.buffer.replacement": True},
    "lamaml_pmnist": FROM_LA_MAML
    | PERMUTATIONS
    | MNIST_LA_MAML
    | {"method.inner_lr": 0.15, "method.rate_lr": 0.3, "method.passes": 5}
    | {"method.buffer.capacity": 200},
    "lamaml_manypmnist": FROM_LA_MAML
    | MANY
    | MNIST_LA_MAML
    | {"method.inner_lr": 0.1, "method.rate_lr": 0.1, "method.passes": 10}
    | {"method.buffer.capacity": 500},
    "agem_pmnist": FROM_LA_MAML | PERMUTATIONS | LA_MAMLS_AGEM | {"method.buffer.per_task": 10},
    "agem_manypmnist": FROM_LA_MAML | MANY | LA_MAMLS_AGEM | {"method.buffer.per_task": 5},
    "lamaml_cifar100": PC_CNN
    | {"method.inner_lr": 0.1, "method.rate_lr": 0.25, "method.order": "second"}
    | {"method.passes": 10, "method.slice_size": 2, "method.clip": 1.0, "method.replay": 10}
    | {"method.inner_rates": "signed", "method.clip_inner": True}
    | {"method.buffer.capacity": 200, "method.buffer.replacement": True},
    "gem_pc_cnn": PC_CNN
    | {"optimizer.lr": 0.03, "method.margin": 0.5, "method.ridge": 1e-3, "method.clip": 5.0}
    | {"method.passes": 2, "method.buffer.per_task": 10},
    "agem_pc_cnn": PC_CNN | LA_MAMLS_AGEM | {"method.passes": 2, "method.buffer.per_task": 10},
    "gem_cifar100": RESNET
    | {"method.margin": 0.5, "method.ridge": 1e-3, "method.clip": None, "method.passes": 1},
    "agem_cifar100": RESNET | LA_MAMLS_AGEM | {"method.passes": 2, "method.buffer.per_task": 10},
    "ewc_cifar100": RESNET | GEMS_EWC | {"method.strength": 2 * 100.0},
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_values_of_its_source(name: str) -> None:
    made: Any = OmegaConf.to_container(composed(f"experiment={FOLDER}/{name}"), resolve=True)
    found = leaves(made)
    for key, value in PRESETS[name].items():
        assert found[key] == value, key


def test_every_preset_is_in_the_table() -> None:
    there = {file.stem for file in (CONF / "experiment" / FOLDER).glob("*.yaml")}
    assert there == set(PRESETS)
