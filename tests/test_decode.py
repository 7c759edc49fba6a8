"""Decoding: modes, sizes, order, progress, and images that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cl_bench.base.exceptions import UserError
from cl_bench.data import decode


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    Image.fromarray(noise).save(file)
    return file


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "PA"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path):
    gray = Image.linear_gradient("L").resize((8, 8)).point([0] * 128 + [255] * 128)
    file = tmp_path / ("x.tif" if mode in {"CMYK", "PA"} else "x.png")
    gray.convert("RGB").convert(mode).save(file)
    pixels = decode.decode("toy", [file], 8, decode.require_size)
    assert torch.equal(pixels[0], torch.tensor(np.asarray(gray)).expand(3, 8, 8))


def test_palette_with_transparency(tmp_path: Path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    pixels = decode.decode("toy", [tmp_path / "x.png"], 8, decode.require_size)
    assert pixels[0, :, 3, 3].tolist() == [10, 20, 30]


def test_resizing_is_bilinear_and_antialiased(photo: Path):
    pixels = decode.decode("toy", [photo], 10, decode.resize)
    with Image.open(photo) as image:
        wanted = np.asarray(image.resize((10, 10), Image.Resampling.BILINEAR))
    assert torch.equal(pixels[0], torch.tensor(wanted).permute(2, 0, 1))
    assert pixels.float().std() < 40 and pixels.is_contiguous()


def test_order_is_kept_over_threads_and_blocks(tmp_path: Path):
    files = [tmp_path / f"{i}.png" for i in range(100)]
    for i, file in enumerate(files):
        Image.new("L", (4, 4), i).save(file)
    shades = decode.decode("toy", files[::-1], 4, decode.require_size)[:, 2, 3, 0]
    assert shades.tolist() == list(range(99, -1, -1))


@pytest.mark.parametrize("kept", [0, 20, 300])
def test_corrupt_image(photo: Path, kept: int):
    photo.write_bytes(photo.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"^toy: cannot use the image .*photo\.png: [^\n]+$"):
        decode.decode("toy", [photo], 10, decode.resize)


def test_sixteen_bits_are_refused(tmp_path: Path):
    Image.fromarray(np.full((4, 4), 999, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png: its mode I;16 is deeper than 8 bits"):
        decode.decode("toy", [tmp_path / "deep.png"], 4, decode.require_size)


def test_a_long_job_reports_and_a_short_one_does_not(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    decode.decode("toy", [photo] * 40, 10, decode.resize)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(decode, "PROGRESS_SECONDS", 0.0)
    decode.decode("toy", [photo] * 40, 10, decode.resize)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"toy: decoded {done} of 40 images" for done in (32, 40)]
