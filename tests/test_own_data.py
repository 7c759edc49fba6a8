"""dataset=arrays: images from a function of the user's, in every form that it may return them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import cl_bench
from cl_bench.base.exceptions import UserError
from cl_bench.config.folders import VARIABLE
from cl_bench.data.own import arrays

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)  # (N, C, H, W)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Photographs:
    """A data set in the way of torchvision."""

    classes = ("ant", "bee", "cat")

    def __init__(self, image: Any) -> None:
        self.image = image

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.image(PIXELS[i].transpose(1, 2, 0)), int(LABELS[i])


FORMS = {
    "channels first": (PIXELS, LABELS),
    "channels last": (PIXELS.transpose(0, 2, 3, 1), LABELS.tolist()),
    "tensors": (torch.from_numpy(PIXELS), torch.from_numpy(LABELS)),
    "PIL images": Photographs(Image.fromarray),
    "arrays one by one": Photographs(np.asarray),
    "tensors one by one": Photographs(torch.tensor),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form: str) -> None:
    made = arrays((FORMS[form], FORMS["channels first"]), "")
    for x, y in ((made.train_x, made.train_y), (made.test_x, made.test_y)):
        assert x.dtype == torch.uint8 and x.equal(torch.from_numpy(PIXELS)) and x.is_contiguous()
        assert y.dtype == torch.int64 and y.equal(torch.from_numpy(LABELS))
    assert made.sha256 == arrays((FORMS["channels first"],) * 2, "").sha256
    named = isinstance(FORMS[form], Photographs)
    assert made.classes == (Photographs.classes if named else ("0", "1", "2"))


def test_grey_images_have_one_channel() -> None:
    grey = PIXELS[:, 0], LABELS
    assert arrays((grey, grey), "").train_x.shape == (6, 1, 5, 4)


GOOD = (PIXELS, LABELS)
WRONG: dict[str, tuple[Any, str]] = {
    "a single part": (GOOD[0], "returned a ndarray; wanted is a pair"),
    "three parts": ((GOOD, GOOD, GOOD), "returned a tuple; wanted is a pair"),
    "no data set": ((GOOD, 5), "its test part is a int; wanted is"),
    "floats": (((PIXELS / 255, LABELS), GOOD), "train images are torch.float64; wanted are raw"),
    "two channels": (((PIXELS[:, :2], LABELS), GOOD), r"train images are \(6, 2, 5, 4\); wanted"),
    "labels that are floats": ((GOOD, (PIXELS, LABELS / 2)), "test labels are .6,. torch.float64"),
    "too few labels": ((GOOD, (PIXELS, LABELS[:3])), "one for each image"),
    "a negative label": ((GOOD, (PIXELS, LABELS - 1)), "test has a negative label"),
    "no images": ((GOOD, (PIXELS[:0], LABELS[:0])), "test has no images"),
    "labels from 1": (
        ((PIXELS, LABELS + 1), (PIXELS, LABELS + 1)),
        "no training image has label 0",
    ),
    "a class to test alone": ((GOOD, (PIXELS, LABELS + 1)), "no training image has label 3"),
    "other sizes": (
        (GOOD, (PIXELS[:, :, :4], LABELS)),
        r"\(3, 5, 4\), test images \(3, 4",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_used_is_refused_in_a_line(kind: str) -> None:
    returned, message = WRONG[kind]
    with pytest.raises(UserError, match=message) as caught:
        arrays(returned, "")
    assert str(caught.value).startswith("dataset.source.load: ") and "\n" not in str(caught.value)


def test_images_of_different_sizes_and_names_that_do_not_fit_are_refused() -> None:
    sizes = iter(range(1, 20))
    with pytest.raises(UserError, match=r"train images differ in size \(\(1, 5, 3\), \(2, 5, 3\)"):
        arrays((Photographs(lambda image: np.resize(image, (next(sizes), 5, 3))), GOOD), "")
    two = Photographs(np.asarray)
    two.classes = ("ant", "bee")  # type: ignore[assignment]
    with pytest.raises(UserError, match="has 2 class names, and labels 0 to 2"):
        arrays((two, GOOD), "")


def test_the_tutorials_function_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is part of the run's code, and its arguments are keys of the config."""
    text = (ROOT / "docs/tutorials/dataset.md").read_text()
    block = text.split("`mydata.py`, in the")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "mydata.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mydata", raising=False)
    options = ("dataset=arrays", "dataset.tasks=3", "tracking=none", f"output_dir={tmp_path}")
    with pytest.raises(UserError, match=r"dataset\.source\.load\._target_: not set; it is"):
        cl_bench.run(*options)
    load = "dataset.source.load._target_=mydata.stripes"
    run = cl_bench.run(*options, load, "+dataset.source.load.each=50", "schedule.batch_size=10")
    assert run.metrics["ACC"] == 1.0 and run.record.stream["train_images"] == [100, 100, 100]
    assert "mydata" in run.record.code["files"]
    with pytest.raises(UserError, match=r"load\.sizes: no such key; dataset\.source\.load has"):
        cl_bench.run(*options, load, "+dataset.source.load.sizes=3")
    content = text.split("`conf/dataset/mystripes.yaml`:\n\n```yaml\n")[1].split("```")[0]
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/mystripes.yaml").write_text(content)
    monkeypatch.setenv(VARIABLE, "")
    option, more = f"--config-dir={tmp_path / 'conf'}", "+dataset.source.load.each=50"
    few = ("tracking=none", f"output_dir={tmp_path}", "schedule.batch_size=10", more)
    again = cl_bench.run(option, "dataset=mystripes", *few)
    assert again.record.stream["sha256"] == run.record.stream["sha256"]
    assert again.record.labels["dataset"] == "mystripes"
    (tmp_path / "mydata.py").write_text(block.replace("default_rng(0)", "default_rng(17)"))
    sys.modules.pop("mydata")
    with pytest.warns(UserWarning, match="the images or labels of the data set are not those"):
        cl_bench.load(run.folder).stream  # noqa: B018
