"""The cache of prepared sources: what is believed, what is rebuilt, and what is said about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cl_bench.base.exceptions import UserError
from cl_bench.data import cache, origin, prepared
from cl_bench.data.arrays import TENSORS, Source, digest, make_source
from cl_bench.data.cache import SourceSpec, load_cached
from cl_bench.data.origin import Origin


class Toy:
    """A data set of one file, whose first byte is its every pixel."""

    def __init__(self, home: Path) -> None:
        self.home, self.place, self.reads = home, home / "toy.bin", 0
        self.file = home / "cache" / "toy.safetensors"
        self.place.write_bytes(b"\x07")

    def read(self) -> Source:
        self.reads += 1
        x = torch.full((6, 3, 4, 4), self.place.read_bytes()[0], dtype=torch.uint8)
        y = torch.arange(6) % 2
        test = x[:2].clone(), y[:2].clone()
        return make_source("toy", (x, y), test, ("cat", "dog"), (1, 0), {"order": "any"})

    def wanted(self, key: str = "toy") -> SourceSpec:
        origins = (Origin(self.place, "one file", self.read, (self.place,)),)
        return SourceSpec(key, "toy: toy not found", origins, lambda: "no download")

    def load(self) -> Source:
        return load_cached(self.home, self.wanted())


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def same(a: Source, b: Source) -> bool:
    """Equal in every field."""
    one, two = dict(vars(a)), dict(vars(b))
    return all(torch.equal(one.pop(name), two.pop(name)) for name in TENSORS) and one == two


def test_second_load_comes_from_the_cache(toy: Toy, capsys: pytest.CaptureFixture[str]):
    first, second = toy.load(), toy.load()
    assert toy.reads == 1 and same(first, second) and capsys.readouterr().err == ""
    assert (second.train_x.dtype, second.train_y.dtype) == (torch.uint8, torch.int64)
    assert second.provenance == {"origin": str(toy.place), "layout": "one file", "order": "any"}
    assert shown(toy.file.parent) == ["toy.safetensors"]


def test_what_is_loaded_is_no_view_of_the_file(toy: Toy):
    toy.load()
    source = toy.load()
    toy.file.write_bytes(bytes(toy.file.stat().st_size))
    assert source.train_x.unique().tolist() == [7]
    source.train_x.zero_()


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated(toy: Toy, kept: int, capsys: pytest.CaptureFixture[str]):
    first = toy.load()
    toy.file.write_bytes(toy.file.read_bytes()[:kept])
    assert same(toy.load(), first) and toy.reads == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{toy.file} is unreadable" in said
    assert same(toy.load(), first) and toy.reads == 2


@pytest.mark.parametrize("where", [b"\x07\x07\x07", b"dog", b"sha256", b"fingerprint", b"U8", b"["])
def test_one_altered_byte(toy: Toy, where: bytes, capsys: pytest.CaptureFixture[str]):
    first = toy.load()
    raw = bytearray(toy.file.read_bytes())
    raw[raw.index(where) + 1] ^= 1
    toy.file.write_bytes(raw)
    assert same(toy.load(), first) and toy.reads == 2
    assert str(toy.file) in capsys.readouterr().err


def test_every_flipped_bit_is_harmless_or_found(toy: Toy):
    first = toy.load()
    raw = toy.file.read_bytes()
    for place in range(0, len(raw), 7):
        toy.file.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        assert same(toy.load(), first)


def test_changed_origin(toy: Toy, capsys: pytest.CaptureFixture[str]):
    toy.load()
    toy.place.write_bytes(b"\x09\x09")
    assert toy.load().train_x.unique().tolist() == [9] and toy.reads == 2
    assert f"{toy.file} was made from another state" in capsys.readouterr().err
    os.utime(toy.place, ns=(1, 1))
    assert toy.load().train_x.unique().tolist() == [9] and toy.reads == 2, "the same content"


def test_a_moved_origin_is_named_where_it_is_now(tmp_path: Path):
    """Two places with the same file share a prepared copy, and each names its own place."""
    homes = [tmp_path / "a" / "pack", tmp_path / "b" / "pack"]
    shared = str(tmp_path / "cache")
    for home in homes:
        home.mkdir(parents=True)
    one, two = map(Toy, homes)
    for toy in (one, two):
        found = load_cached(toy.home, toy.wanted(), shared)
        assert found.provenance["origin"] == str(toy.place)
    assert (one.reads, two.reads) == (1, 0)


def test_a_large_origin_is_known_by_its_time(toy: Toy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origin, "SMALL", 0)
    toy.load()
    os.utime(toy.place, ns=(1, 1))
    toy.load()
    assert toy.reads == 2


def test_intact_cache_outlives_its_origin(toy: Toy, capsys: pytest.CaptureFixture[str]):
    first = toy.load()
    toy.place.unlink()
    assert same(toy.load(), first) and capsys.readouterr().err == ""


def test_altered_cache_without_origin(toy: Toy):
    toy.load()
    toy.place.unlink()
    raw = toy.file.read_bytes()
    toy.file.write_bytes(raw[:-1] + b"\x55")
    with pytest.raises(UserError) as error:
        toy.load()
    line = str(error.value)
    assert line.startswith("toy: toy not found; no download; the cache ") and "\n" not in line
    assert str(toy.file) in line and "altered" in line


def test_another_format_is_rebuilt(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "VERSION", "0")
        toy.load()
    toy.load()
    assert toy.reads == 2 and f"{toy.file} has format 0 instead of 1" in capsys.readouterr().err


def test_a_file_under_another_key_is_refused(toy: Toy):
    toy.load()
    toy.place.unlink()
    toy.file.rename(toy.file.with_stem("other"))
    with pytest.raises(UserError, match="does not match its seal"):
        load_cached(toy.home, toy.wanted("other"))


def shown(folder: Path) -> list[str]:
    """The files of a folder, but for the locks of its caches."""
    return [name for name in os.listdir(folder) if not name.endswith(".lock")]


def test_stale_partial_files_are_ignored(toy: Toy):
    toy.file.parent.mkdir()
    stale = toy.file.with_name(".toy.safetensors.1234.tmp")
    stale.write_bytes(b"half a file")
    first = toy.load()
    assert same(toy.load(), first) and toy.reads == 1


def test_failed_write_leaves_the_old_file(toy: Toy, monkeypatch: pytest.MonkeyPatch):
    toy.load()
    before = toy.file.read_bytes()
    toy.place.write_bytes(b"\x09\x09")

    def full(_: object, file: Path, metadata: dict[str, str]) -> None:
        file.write_bytes(b"the beginning")
        raise OSError(28, f"No space left on device for {len(metadata)} entries")

    monkeypatch.setattr(prepared, "save_file", full)
    with pytest.raises(UserError, match=r"toy\.safetensors: cannot write .*No space left"):
        toy.load()
    assert toy.file.read_bytes() == before and shown(toy.file.parent) == ["toy.safetensors"]


def test_unwritable_data_dir(toy: Toy):
    blocked = toy.place / "inside a file"
    with pytest.raises(UserError, match=r"inside a file is not writable .* set cache_dir=<folder>"):
        load_cached(blocked, toy.wanted(), str(blocked))
    assert toy.reads == 0


def test_a_read_only_share_has_its_cache_elsewhere(
    toy: Toy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """In the user's own folder, which is said once; one that the share holds already is used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    (tmp_path / "cache").write_text("no folder can be made here")
    first = toy.load()
    said = capsys.readouterr().err
    own = tmp_path / "user/cl_bench/cache"
    assert (
        said
        == f"{tmp_path / 'cache'} is not writable (File exists): prepared data is kept in {own}\n"
    )
    assert same(toy.load(), first) and toy.reads == 1 and shown(own) == ["toy.safetensors"]
    assert capsys.readouterr().err == ""
    (tmp_path / "cache").unlink()
    toy.load()
    assert toy.reads == 2, "what can be written is used first"
    monkeypatch.setattr(cache, "_write_problem", lambda folder: f"{folder} is not writable")
    own.joinpath("toy.safetensors").unlink()
    assert same(toy.load(), first) and toy.reads == 2


def test_a_cache_dir_of_its_own(toy: Toy, tmp_path: Path):
    load_cached(toy.home, toy.wanted(), str(tmp_path / "fast"))
    assert shown(tmp_path / "fast") == ["toy.safetensors"] and not toy.file.exists()


def put(kind: str, place: Path) -> None:
    """Something that is no regular file."""
    place.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to(place.parent / "nowhere")


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_an_origin_that_is_no_regular_file_is_not_opened(toy: Toy, kind: str):
    """Nor is it downloaded, which would write to it; a cache that is there serves."""
    first = toy.load()
    put(kind, toy.place)
    assert same(toy.load(), first)
    toy.file.unlink()
    with pytest.raises(UserError) as error:
        toy.load()
    words = {"fifo": "a named pipe", "folder": "a folder", "link": "a broken link"}[kind]
    assert str(error.value) == f"toy: toy not found; {toy.place} is {words}, not a file"


@pytest.mark.parametrize("name", ["toy.safetensors", ".toy.safetensors.tmp"])
def test_a_pipe_in_place_of_the_cache_is_replaced(toy: Toy, name: str):
    toy.file.parent.mkdir()
    put("fifo", toy.file.with_name(name))
    first = toy.load()
    assert same(toy.load(), first) and toy.reads == 1
    assert shown(toy.file.parent) == ["toy.safetensors"]


def test_a_folder_in_place_of_the_cache_is_named(toy: Toy):
    toy.file.mkdir(parents=True)
    with pytest.raises(UserError, match=r"toy\.safetensors: cannot write .*directory"):
        toy.load()


def test_digest_sees_dtype_shape_and_bytes():
    x = torch.arange(12, dtype=torch.uint8)
    variants = [x, x.view(3, 4), x.view(4, 3), x.view(torch.int8), x.flip(0)]
    assert len({digest(variant) for variant in variants}) == len(variants)


def test_two_processes_at_once(tmp_path: Path):
    code = "import sys; from cl_bench.data.source import mnist5k as f; print(f(sys.argv[1]).sha256)"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    both = [subprocess.Popen(command, env=environment, stdout=pipe, stderr=out) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1] and len(said[0]) == 65
    assert shown(tmp_path / "cache") == ["mnist5k.safetensors"]
