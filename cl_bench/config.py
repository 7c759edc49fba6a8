"""Everything about a config before a run: is it right, what is it called, what built from it."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from typing import Any, cast

import hydra.errors
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cl_bench.models import prepare
from cl_bench.models.pretrained import identity
from cl_bench.schema import PLAIN, at, check_keys, check_node, check_ranges, check_type
from cl_bench.types import UserError

GROUPS = ("scenario", "model", "criterion", "optimizer", "schedule", "evaluation", "stream")
GROUPS += ("curvature", "merging", "runtime", "tracking", "dataset", "method")
PROXIMAL = ("cl_bench.optim.SGD", "torch.optim.SGD")
OPTIONAL = ("probe", "study")  # groups of which there may be none
DECOUPLED = ("torch.optim.AdamW",)
PLACE_ERRORS = (PermissionError, NotADirectoryError, FileExistsError)
PLACES = ("seed", "output_dir", "data_dir")  # may differ between runs of one config
SILENT = ("tracking", "log_every", "save_every", "force")  # cannot change a number
SILENT += ("curvature", "merging")  # a method that uses them holds them itself


def check(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config, once every key, type and combination in it is known to be right."""
    try:
        whole = _resolved(cfg)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}") from None
    plain: dict[str, Any] = {k: v for k, v in whole.items() if v is not None or k not in OPTIONAL}
    chosen = [group for group in OPTIONAL if group in plain]
    check_keys("", plain, [*GROUPS, *chosen, *(key for key in PLAIN if "." not in key)])
    check_keys("scenario", plain["scenario"], ["name", "split", "live"])
    for group in (*GROUPS[1:], *chosen):
        at(plain, f"{group}._target_")
    for key, hint in PLAIN.items():
        check_type(key, at(plain, key), hint)
    for key, node in _targets(plain, ""):
        check_node(key, node)
        check_ranges(key, node)
    check_ranges("", plain)
    _check_combination(plain)
    return plain


def digest(cfg: DictConfig) -> str:
    """The name of a config: a hash of all that can change a number, but the seed."""
    same = cfg.copy()
    anywhere = [p for p in PLACES if p != "data_dir" or "path" not in cfg.dataset.source]
    with open_dict(same):
        same.update(dict.fromkeys(anywhere, 0))
    kept = {k: v for k, v in _resolved(same).items() if k not in SILENT}
    if kept.get("study") and "learner" not in parameters(cfg.study):
        kept = {"study": kept["study"]}  # made of its own numbers
    else:
        kept["model"]["pretrained"] = identity(kept["model"])
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def build(node: DictConfig, **extra: Any) -> Any:
    """The object that a node describes; the only call of `instantiate`."""
    made = instantiate(node, _convert_="all")
    return made(**extra) if extra else made


def parameters(node: DictConfig) -> list[str]:
    """The names of what the node's target takes."""
    return list(inspect.signature(get_object(node._target_)).parameters)


def without(node: DictConfig, *keys: str) -> DictConfig:
    """The node, resolved, but for these keys."""
    return OmegaConf.create({k: v for k, v in _resolved(node).items() if k not in keys})


def explain(error: BaseException) -> str | None:
    """One line for what is the user's fault; None for what is not."""
    chain = list(causes(error))
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
    for link in chain:
        if isinstance(link, hydra.errors.MissingConfigException) and link.missing_cfg_file:
            group, _, name = link.missing_cfg_file.rpartition("/")
            return f"{group}={name}: no such {group}; there are {', '.join(link.options or [])}"
    for link in chain:
        if isinstance(link, OmegaConfBaseException) and link.full_key:
            parent = link.parent_node
            there = sorted(map(str, parent)) if isinstance(parent, DictConfig) else []
            there = [k for k in there if k not in ("_target_", "_partial_", "hydra")]
            known = f"; there are {', '.join(there)}" if there else ""
            return f"{link.full_key}: {_first_line(link)}{known}"
    if isinstance(error, PLACE_ERRORS) and error.filename:
        return f"{error.filename}: {error.strerror}"
    composing = hydra.errors.ConfigCompositionException, hydra.errors.OverrideParseException
    return _first_line(error) if isinstance(error, composing) else None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, what caused that."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _targets(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}" if key else name)


def _check_combination(plain: dict[str, Any]) -> None:
    scenario, split = plain["scenario"]["name"], plain["dataset"]["split"]
    if plain["optimizer"]["_target_"] in DECOUPLED:
        raise UserError(
            f"optimizer._target_={plain['optimizer']['_target_']}: weight decay is L2 on the "
            "parameters in use, and this one's is not; use torch.optim.Adam or another"
        )
    serves = get_object(plain["method"]["_target_"]).scenarios
    if scenario not in serves:
        raise UserError(f"scenario={scenario}: the method serves {', '.join(serves)}")
    if scenario != "data" and split != "class":
        raise UserError(
            f"scenario={scenario}: with dataset.split={split} every task has the same classes; "
            "use scenario=data, or dataset.split=class"
        )
    if split == "permutation" and get_object(plain["model"]["_target_"]).spatial:
        raise UserError(
            "dataset.split=permutation: the model sees neighbouring pixels, which a permutation "
            "destroys; use model=mlp, or dataset.split=class or sample"
        )
    _check_model(plain)
    if "curvature" in plain["method"]:
        _check_curvature(plain, plain["method"]["curvature"])
    if plain["method"]["_target_"].endswith(".DLCFT"):
        _check_dlcft(plain)
    if "step" in plain["method"]:
        _check_step(plain, plain["method"])


def _check_model(plain: dict[str, Any]) -> None:
    model = plain["model"]
    if plain["schedule"]["warm_up"] == "head" and model["head_mode"] == "linearized":
        raise UserError(
            "schedule.warm_up=head: with model.head_mode=linearized the head starts where the "
            "tangent is taken; use schedule.warm_up=none, or model.head_mode=bilinear"
        )
    has_batch_norm = get_object(model["_target_"]).batch_norm
    prepare.check(model, has_batch_norm, plain["dataset"]["transform"])


def _check_dlcft(plain: dict[str, Any]) -> None:
    """Its weights, and its zero rows for classes to come (papers/001 eq. 11 and section 3.3)."""
    if not plain["method"]["merging"]["_target_"].endswith(".averaged"):
        raise UserError(
            "merging: method=dlcft weights the past by (t-1)/t itself, which is right for a mean "
            "over tasks; use merging=count or literal"
        )
    if plain["scenario"]["name"] == "class" and plain["model"].get("head_init") != "zero":
        raise UserError(
            f"model.head_init={plain['model'].get('head_init')}: class-incremental, method=dlcft "
            "holds units that are still to come at zero; use model.head_init=zero "
            "(and model.head_mode=bilinear or head_only)"
        )


def _check_curvature(plain: dict[str, Any], curvature: dict[str, Any]) -> None:
    criterion = plain["criterion"]["_target_"]
    batched = curvature["_target_"].endswith("BatchedFisher")
    residuals = curvature.get("labels") == "empirical" or batched
    if residuals and criterion.endswith("ScaledMSE"):
        raise UserError(
            f"curvature={'diag_batched' if batched else 'diag_fisher, labels=empirical'}: with a "
            "squared loss it is made of residuals, which vanish as the fit improves; use "
            "diag_fisher with labels=sampled or exact"
        )
    if curvature.get("negative") == "raw" and curvature.get("estimate") != "ggn":
        raise UserError(
            "curvature.negative=raw: a penalty by negative values is unbounded below; "
            "use clamped or absolute"
        )
    frozen = plain["schedule"].get("batch_norm") == "frozen"
    if curvature.get("batch_norm") == "frozen" and not frozen:
        raise UserError(
            "curvature.batch_norm=frozen: batch norm's weights would move unprotected; "
            "use diagonal, or schedule.batch_norm=frozen"
        )


def _check_step(plain: dict[str, Any], method: dict[str, Any]) -> None:
    """What the two steps of a penalty need of the optimizer and of the curvature."""
    optimizer = plain["optimizer"]
    proximal = optimizer["_target_"] in PROXIMAL
    if not proximal and (method["step"] == "implicit" or method.get("every", 1) > 1):
        key = "method.step=implicit" if method["step"] == "implicit" else "method.every above 1"
        raise UserError(
            f"{key}: with optimizer._target_={optimizer['_target_']}, which may rescale gradients, "
            "its fixed points are not those of loss + penalty; use method.step=explicit and "
            "method.every=1, or SGD"
        )
    for name in ("nesterov", "dampening", "maximize"):
        if proximal and optimizer.get(name):
            raise UserError(f"optimizer.{name}: a penalty's steps are not worked out for it")
    apart = method.get("merging", {}).get("_target_", "").endswith(".apart")
    implicit = apart and method["step"] == "implicit"
    if implicit and not get_object(method["curvature"]["_target_"]).linear:
        raise UserError(
            "merging=apart: Kronecker factors of several tasks have no common inverse; "
            "use method.step=explicit, or another merging"
        )
