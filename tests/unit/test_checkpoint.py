"""Checkpoints load whole or not at all, and the error names the file and what to do."""

from __future__ import annotations

import errno
import json
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from kronos_qlib.errors import CheckpointError, ConfigError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.model.checkpoints.pretrained import (
    ALIASES,
    SHAPES,
    Origin,
    check_pair,
    fingerprint,
)
from kronos_qlib.model.checkpoints.weights import all_finite, shapes_alone
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos


@pytest.fixture
def folder(tiny_pair, tmp_path):
    """A folder that holds both halves."""
    tokenizer, predictor = tiny_pair
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    predictor.save_pretrained(tmp_path / "predictor", tokenizer)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_both_halves_come_from_one_folder(folder, tiny_pair):
    loaded = KronosTokenizer.from_pretrained(folder), Kronos.from_pretrained(str(folder))
    for found, saved in zip(loaded, tiny_pair, strict=True):
        assert found.config == saved.config
        assert fingerprint(found) == fingerprint(saved)
    check_pair(loaded[1], loaded[0])


def test_a_loaded_network_does_not_drop_out(make_pair, tmp_path):
    """The published loader leaves it in training mode: forecasts with dropout."""
    for half in make_pair(dropout=0.5):
        loaded = type(half).from_pretrained(half.train().save_pretrained(tmp_path))
        assert not any(module.training for module in loaded.modules())


def test_the_bundled_pair_needs_no_network():
    tokenizer, predictor = KronosTokenizer.from_pretrained("nano"), Kronos.from_pretrained("nano")
    check_pair(predictor, tokenizer)


def put_hub(monkeypatch, hub):
    """The Hub in reach, and what it serves."""
    monkeypatch.setattr("kronos_qlib.model.checkpoints.hub.reach", lambda endpoint: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)


class Hub:
    """Stands in for the Hugging Face Hub: records what is asked, serves a folder or nothing."""

    def __init__(self, folder=None):
        self.folder = folder
        self.asked = []

    def __call__(self, repo, file, revision=None):
        self.asked.append((repo, file, revision))
        if self.folder is None:
            raise ConnectionError("no route to huggingface.co\nand a long story")
        half = "tokenizer" if "Tokenizer" in repo else "predictor"
        return str(self.folder / half / file)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_repositories_at_pinned_revisions(alias, folder, monkeypatch):
    hub = Hub(folder)
    put_hub(monkeypatch, hub)
    tokenizer, predictor = KronosTokenizer.from_pretrained(alias), Kronos.from_pretrained(alias)
    check_pair(predictor, tokenizer)
    model = ALIASES[alias]
    asked = {(repo, revision) for repo, _, revision in hub.asked}
    assert asked == {
        (model.tokenizer, model.tokenizer_revision),
        (model.predictor, model.predictor_revision),
    }


def test_a_hub_id_keeps_its_pin_and_a_revision_overrides_it(folder, monkeypatch):
    hub = Hub(folder)
    put_hub(monkeypatch, hub)
    repo, pin = ALIASES["small"].predictor, ALIASES["small"].predictor_revision
    assert Kronos.from_pretrained(repo).origin.max_context == 512
    Kronos.from_pretrained(repo, "abc")
    Kronos.from_pretrained("someone/else")
    assert [revision for _, _, revision in hub.asked[::2]] == [pin, "abc", None]
    assert Kronos.from_pretrained("mini").origin.max_context == 2048


def test_a_checkpoint_remembers_how_many_bars_it_saw(tmp_path):
    """nano knows 256 bars; copied to a folder it must not pass for a network of 512."""
    net = Kronos.from_pretrained("nano")
    assert net.origin.max_context == 256
    again = Kronos.from_pretrained(net.save_pretrained(tmp_path))
    assert again.origin.max_context == 256
    tokenizer = KronosTokenizer.from_pretrained("nano")
    assert KronosPredictor(again, tokenizer, device="cpu").max_context == 256
    assert KronosPredictor(again, tokenizer, device="cpu", max_context=60).max_context == 60


def test_a_revision_of_what_has_none_is_refused(folder):
    for name in ("nano", folder):
        with pytest.raises(ConfigError, match="goes with a Hub id"):
            Kronos.from_pretrained(name, "abc")


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    put_hub(monkeypatch, Hub())
    with pytest.raises(CheckpointError) as caught:
        Kronos.from_pretrained("base")
    message = str(caught.value)
    for part in ("config.json", "NeoQuasar/Kronos-base", "no route", "folder", "'nano'"):
        assert part in message
    assert "long story" not in message


@pytest.mark.parametrize("name", ["bse", "a/b/c", "./nowhere", "/no/where", "~/nowhere", ""])
def test_what_is_no_place_at_all(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing|no folder, no alias"):
        Kronos.from_pretrained(name)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, file):
    (folder / "predictor" / file).unlink()
    with pytest.raises(CheckpointError, match=f"predictor/{file} is missing"):
        Kronos.from_pretrained(folder / "predictor")


def test_a_config_with_an_unknown_key_hints_at_the_right_one(folder):
    edit_config(folder / "predictor", d_modle=16)
    with pytest.raises(ConfigError, match=r"config.json has no setting 'd_modle'; .*'d_model'"):
        Kronos.from_pretrained(folder)


def test_a_config_that_is_no_json(folder):
    (folder / "predictor" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"predictor/config.json cannot be read as JSON"):
        Kronos.from_pretrained(folder)


def test_the_other_half_is_recognised(folder):
    with pytest.raises(ConfigError, match="describes a tokenizer, a predictor was asked for"):
        Kronos.from_pretrained(folder / "tokenizer")
    with pytest.raises(ConfigError, match="describes a predictor, a tokenizer was asked for"):
        KronosTokenizer.from_pretrained(folder / "predictor")


def test_a_shape_that_does_not_fit_is_told(folder):
    edit_config(folder / "predictor", s1_bits=5)
    with pytest.raises(CheckpointError, match=r"emb_s1.weight is \(16, 16\) in the file and \(32"):
        Kronos.from_pretrained(folder)


def test_missing_and_extra_tensors_are_told(folder):
    path = folder / "predictor" / "model.safetensors"
    tensors = load_file(path)
    del tensors["norm.weight"]
    save_file(tensors | {"surprise": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"lacks norm.weight; has unknown surprise"):
        Kronos.from_pretrained(folder)


def test_a_pickle_is_never_opened(folder, tmp_path):
    """Unpickling runs whatever code the file holds."""
    path = folder / "predictor" / "model.safetensors"
    path.write_bytes(pickle.dumps({"norm.weight": [1.0]}))
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        Kronos.from_pretrained(folder)
    path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=r"no pickles.*pytorch_model.bin"):
        Kronos.from_pretrained(folder)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(folder, size):
    path = folder / "predictor" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"predictor/model.safetensors cannot be read"):
        Kronos.from_pretrained(folder)


def test_saving_is_all_or_nothing(folder, make_pair, monkeypatch):
    """A crash in the middle of a save once left neither the old weights nor the new ones."""
    before = (folder / "predictor" / "model.safetensors").read_bytes()
    _, other = make_pair(seed=1)

    def half_written(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="no space"):
        other.save_pretrained(folder / "predictor")
    monkeypatch.undo()
    assert (folder / "predictor" / "model.safetensors").read_bytes() == before
    files = sorted(path.name for path in (folder / "predictor").iterdir())
    assert files == ["config.json", "model.safetensors"]


def test_halves_of_other_sizes_are_refused(make_pair):
    _, predictor = make_pair()
    tokenizer, _ = make_pair(s1_bits=3, s2_bits=4)
    with pytest.raises(CheckpointError, match=r"4 \+ 3 bits and the tokenizer writes 3 \+ 4"):
        check_pair(predictor, tokenizer)


def test_the_other_published_tokenizer_is_refused(tiny_pair):
    """The two published tokenizers have the same sizes: only their names tell them apart."""
    tokenizer, predictor = tiny_pair
    predictor.origin = Origin("small", repo=ALIASES["small"].predictor)
    tokenizer.origin = Origin("mini", repo=ALIASES["mini"].tokenizer)
    with pytest.raises(CheckpointError, match="trained with NeoQuasar/Kronos-Tokenizer-base, not"):
        check_pair(predictor, tokenizer)


def test_a_tokenizer_with_another_fingerprint_is_refused(folder, make_pair, tmp_path):
    """From a folder or from memory, with the same sizes: its codes mean something else."""
    predictor = Kronos.from_pretrained(folder)
    stranger, _ = make_pair(seed=1)
    with pytest.raises(CheckpointError, match="another fingerprint"):
        check_pair(predictor, stranger)
    loaded = KronosTokenizer.from_pretrained(stranger.save_pretrained(tmp_path / "stranger"))
    with pytest.raises(CheckpointError, match=r"the one from .*stranger"):
        check_pair(predictor, loaded)


def test_a_full_disk_leaves_the_old_checkpoint_whole(tiny_pair, tmp_path, monkeypatch):
    """The small config.json still fitted, and then lay beside the weights of another network."""
    tokenizer, predictor = tiny_pair
    predictor.save_pretrained(tmp_path, tokenizer, 64)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_bytes

    def full(path, data):
        write(path, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    other = Kronos(**{**asdict(predictor.config), "n_layers": 1})
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(tmp_path, tokenizer, 64)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_all_finite_says_what_isfinite_does(kind):
    """A sum of large numbers overflows though each of them is finite."""
    largest = torch.finfo(kind).max
    for values, is_finite in (
        ([0.0, -1.0], True),
        ([largest, largest], True),
        ([0.0, float("nan")], False),
        ([float("inf"), float("-inf")], False),
        ([largest, largest, float("-inf")], False),
        ([], True),
    ):
        assert all_finite(torch.tensor(values, dtype=kind)) is is_finite


def test_loading_imports_no_compiler():
    """Torch's takes thirty times as long as nano's weights."""
    script = """
import sys
from kronos_qlib import Kronos, KronosTokenizer
assert not any(weight.is_meta for weight in Kronos.from_pretrained("nano").state_dict().values())
KronosTokenizer.from_pretrained("nano")
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("learn_te", [True, False])
def test_a_network_of_shapes_alone_has_no_values(learn_te):
    before = torch.random.get_rng_state()
    with shapes_alone():
        net = Kronos(**{**SHAPES["mini"], "learn_te": learn_te})
    assert all(weight.is_meta for weight in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)
