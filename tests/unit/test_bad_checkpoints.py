"""Checkpoints that mean harm or are damaged: an error that names the file, at once."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny_networks import load_part, peak_memory

from kronos_qlib.errors import CheckpointError, ConfigError
from kronos_qlib.model.alpha_head import AlphaHead
from kronos_qlib.model.checkpoints import weights
from kronos_qlib.model.checkpoints.pretrained import CONTEXT_KEY, PART_KEY, fingerprint, sizes_of
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos
from kronos_qlib.strict_json import MOST_BYTES

FEATURES = ["one", "two", "three"]


@pytest.fixture(scope="module", autouse=True)
def _what_torch_does_once():
    """Its first network without memory takes it seconds of imports."""
    Kronos.from_pretrained("nano")


@pytest.fixture
def folder(tiny_pair, tmp_path):
    """A tokenizer, a predictor and an alpha head."""
    tokenizer, predictor = tiny_pair
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    predictor.save_pretrained(tmp_path / "predictor", tokenizer, 64)
    AlphaHead(16, 3, 4, 8, 0.0).save_pretrained(tmp_path / "alpha", FEATURES)
    return tmp_path


load = partial(load_part, features=FEATURES)


def refused(folder, part, *words):
    """The message of the refusal, which took no memory."""
    before = peak_memory()
    with pytest.raises(CheckpointError) as caught:
        load(folder, part)
    assert peak_memory() - before < 2**27
    message = str(caught.value)
    assert len(message) < 1500
    assert message.isprintable() or "\n" in message
    for word in words:
        assert word in message, message
    return message


def edit(folder, part, **changes):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SIZES = {
    "tokenizer": [
        *("d_in", "d_model", "n_heads", "ff_dim", "n_enc_layers", "n_dec_layers"),
        *("s1_bits", "s2_bits", "group_size"),
    ],
    "predictor": ["s1_bits", "s2_bits", "n_layers", "d_model", "n_heads", "ff_dim"],
    "alpha": ["d_model", "features", "context_width", "hidden"],
}
NUMBERS = {
    "tokenizer": ["ffn_dropout_p", "attn_dropout_p", "resid_dropout_p", "beta", "gamma", "zeta"],
    "predictor": ["ffn_dropout_p", "attn_dropout_p", "resid_dropout_p", "token_dropout_p"],
    "alpha": ["dropout"],
}


@pytest.mark.parametrize(
    "value",
    [-1, 512.0, True, None, "16", [16], {"a": 1}, 10**9, 10**17, 200_000, 3_000_000],
    ids=str,
)
@pytest.mark.parametrize(
    ("part", "key"), [(part, key) for part, keys in SIZES.items() for key in keys]
)
def test_a_size_that_cannot_be_is_refused(folder, part, key, value):
    """200,000 layers were built for minutes; a head of 3,000,000 took 900 MB before its refusal."""
    edit(folder, part, **{key: value})
    message = refused(folder, part, f"{part}{os.sep}", "config.json")
    assert key in message or "of width" in message or "(200000, 16) by config" in message


@pytest.mark.parametrize("value", [0, 60, 64, 2**16], ids=str)
@pytest.mark.parametrize(("part", "key"), [("tokenizer", "s1_bits"), ("predictor", "s2_bits")])
def test_bits_that_no_table_has(folder, part, key, value):
    edit(folder, part, **{key: value})
    refused(folder, part, "config.json", key)


def test_heads_of_no_number(folder):
    for part in ("tokenizer", "predictor"):
        edit(folder, part, n_heads=0)
        refused(folder, part, "config.json", "n_heads")


@pytest.mark.parametrize(
    "changes",
    [
        {"d_model": 65536, "n_heads": 16},
        {"d_model": 8192, "ff_dim": 262144},
        {"s1_bits": 20, "s2_bits": 20},
        {"n_layers": 256},
        {"ff_dim": 262144},
        {"n_layers": 3},
        {"n_layers": 1},
    ],
    ids=str,
)
def test_sizes_that_are_allowed_are_held_against_the_file(folder, changes):
    """Each alone is possible: the file beside them is not of that network."""
    edit(folder, "predictor", **changes)
    refused(folder, "predictor", f"predictor{os.sep}")


@pytest.mark.parametrize("value", [-0.1, 1.0, 2, True, None, "0", [0.0], 10**17], ids=str)
@pytest.mark.parametrize(
    ("part", "key"),
    [(part, key) for part, keys in NUMBERS.items() for key in keys if "dropout" in key],
)
def test_a_dropout_that_cannot_be_is_refused(folder, part, key, value):
    edit(folder, part, **{key: value})
    refused(folder, part, "config.json", key)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "an object"),
        (b"7", "an object"),
        (b"null", "an object"),
        (b'"d_model"', "an object"),
        (b"[" * 100_000 + b"]" * 100_000, "too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "too deeply"),
        (b'{"n_layers": ' + b"[" * 900 + b"]" * 900 + b"}", "config.json"),
        (b'{"n_layers": NaN}', "NaN"),
        (b'{"n_layers": Infinity}', "Infinity"),
        (b'{"n_layers": -Infinity}', "-Infinity"),
        (b'{"n_layers": 1e999}', "too large"),
        (b'{"n_layers": ' + b"9" * 100_000 + b"}", "digits"),
        (b'{"n_layers": 2, "n_layers": 2}', "twice"),
        (b'{"n_layers": "\xff\xfe"}', "utf-8"),
        ('{"n_layers": 2}'.encode("utf-16"), "utf-8"),
        (b'{"\\ud800\\u001b[2J": 2}', "no setting"),
        (b'{"' + b"k" * 500_000 + b'": 2}', "no setting"),
        (b'{"n_layers": "' + b"v" * 500_000 + b'"}', "config.json"),
        (b"\0" * 100, "JSON"),
        (b"{}", "lacks"),
        (b" " * (MOST_BYTES + 1), "more than"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else str(value[:20]),
)
@pytest.mark.parametrize("part", SIZES)
def test_a_config_that_is_none(folder, part, text, word):
    (folder / part / "config.json").write_bytes(text)
    refused(folder, part, f"{part}{os.sep}config.json", word)


def test_a_config_of_a_gigabyte_is_not_read(folder):
    with (folder / "predictor" / "config.json").open("r+b") as file:
        file.truncate(2**30)
    refused(folder, "predictor", "config.json", "more than")


def test_an_unknown_key_of_a_checkpoint_is_an_error_of_both_kinds(folder):
    """Who catches ConfigError, as before, catches it still."""
    for part in SIZES:
        edit(folder, part, d_modle=16)
        refused(folder, part, f"{part}{os.sep}config.json", "d_modle", "'d_model'")
        with pytest.raises(ConfigError):
            load(folder, part)


def test_new_networks_are_bounded_too(folder):
    """`from_scratch` takes the sizes of a config that has no weights beside it."""
    for changes in ({"n_layers": 200_000}, {"d_model": 65536}, {"n_layers": [2]}):
        edit(folder, "predictor", **changes)
        with pytest.raises(CheckpointError, match=r"predictor.config\.json"):
            sizes_of(folder / "predictor", "predictor")
    (folder / "predictor" / "config.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        sizes_of(folder, "predictor")


# Headers.


def rewrite(path, change, data=None):
    """The file with its header changed; `change` gets it as a mapping and may return bytes."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    text = change(header)
    if not isinstance(text, bytes):
        text = json.dumps(header).encode()
    rest = whole[8 + length :] if data is None else data
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


NAME = "norm.weight"


def put(**values):
    return lambda header: header[NAME].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(data_offsets=[0, 64]), ["byte"]),
        (put(data_offsets=[0, 10**17]), [NAME, "needs 64 bytes"]),
        (put(data_offsets=[-64, 0]), [NAME, "data_offsets"]),
        (put(data_offsets=[64, 0]), [NAME]),
        (put(data_offsets=[0.0, 64.0]), [NAME, "data_offsets"]),
        (put(data_offsets=[0]), [NAME, "data_offsets"]),
        (put(data_offsets=None), [NAME, "data_offsets"]),
        (put(shape=[10**17] * 8), [NAME]),
        (put(shape=[1] * 1000 + [16]), [NAME, "shape"]),
        (put(shape=[-16, -1]), [NAME, "shape"]),
        (put(shape=[16.0]), [NAME, "shape"]),
        (put(shape=[True]), [NAME, "shape"]),
        (put(shape="16"), [NAME, "shape"]),
        (put(shape=[]), [NAME, "needs 4 bytes"]),
        (put(shape=[0]), [NAME, "needs 0 bytes"]),
        (put(shape=[4, 4]), [NAME, "(4, 4) in the file and (16,)"]),
        (put(dtype="F64"), [NAME, "F64 needs 128"]),
        (put(dtype="I32"), [NAME, "is I32, expected one of F64"]),
        (put(dtype="F8_E4M3", shape=[64]), [NAME, "'F8_E4M3'"]),
        (put(dtype="F8_E5M2", shape=[64]), [NAME, "'F8_E5M2'"]),
        (put(dtype="C64", shape=[8]), [NAME, "'C64'"]),
        (put(dtype="BOOL", shape=[64]), [NAME]),
        (put(dtype="I8", shape=[64]), [NAME]),
        (put(dtype=7), [NAME]),
        (put(dtype=["F32"]), [NAME]),
        (put(more=1), [NAME, "dtype, shape"]),
        (lambda header: header.update({NAME: 7}), [NAME]),
        (lambda header: header.update({NAME: [7] * 99999}), [NAME]),
        (lambda header: header.pop(NAME) and None, ["byte"]),
        (lambda header: header.update(__metadata__=[1]), ["__metadata__"]),
        (lambda header: header.update(__metadata__={"a": 1}), ["__metadata__"]),
        (lambda header: header["__metadata__"].update({CONTEXT_KEY: "1e9"}), [CONTEXT_KEY]),
        (lambda header: header["__metadata__"].update({CONTEXT_KEY: "0"}), [CONTEXT_KEY]),
        (lambda header: header["__metadata__"].update({CONTEXT_KEY: "-5"}), [CONTEXT_KEY]),
        (lambda header: header["__metadata__"].update({CONTEXT_KEY: "9" * 5000}), [CONTEXT_KEY]),
        (lambda header: header["__metadata__"].update({CONTEXT_KEY: "٣"}), [CONTEXT_KEY]),
        (lambda header: header["__metadata__"].update({PART_KEY + "\x1b[2J": "A" * 99}), ["saved"]),
        (lambda header: b"{}", ["bytes"]),
        (lambda header: b"[]", ["an object"]),
        (lambda header: b"[" * 100_000, ["too deeply"]),
        (lambda header: b'{"a":{"dtype":"F32"', ["read"]),
        (lambda header: b'{"\xff": 1}', ["utf-8"]),
        (lambda header: b'{"a": NaN}', ["NaN"]),
        (lambda header: json.dumps(header).encode()[:-1] + b', "a": 1, "a": 1}', ["twice"]),
        (lambda header: b" " * (MOST_BYTES + 8), ["at most"]),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(folder, change, words):
    rewrite(folder / "predictor" / "model.safetensors", change)
    refused(folder, "predictor", f"predictor{os.sep}model.safetensors", *words)


@pytest.mark.parametrize("part", SIZES)
@pytest.mark.parametrize("length", [0, 1, 2**20, 2**27, 2**63, 2**64 - 1], ids=str)
def test_the_length_of_a_header_may_lie(folder, part, length):
    path = folder / part / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(folder, part, f"{part}{os.sep}model.safetensors", "cannot be read as safetensors")


def test_a_header_of_a_hundred_megabytes_is_not_read(folder):
    path = folder / "predictor" / "model.safetensors"
    with path.open("wb") as file:
        file.write((100 * 2**20).to_bytes(8, "little") + b'{"a":')
        file.truncate(101 * 2**20)
    refused(folder, "predictor", "104857600 bytes", "model.safetensors")


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="holes cannot be found here")
def test_a_file_that_was_never_written_is_refused(folder):
    """A few kilobytes on disk, gigabytes of zeros in memory: sizes agree, and nothing is there."""
    net = {"n_layers": 1, "d_model": 512, "n_heads": 8, "ff_dim": 200_000}
    edit(folder, "predictor", **net)
    with torch.device("meta"):
        sizes = json.loads((folder / "predictor" / "config.json").read_text())
        own = Kronos(**sizes).state_dict()
    header, reached = {}, 0
    for name, value in own.items():
        begin, reached = reached, reached + 4 * value.numel()
        header[name] = {"dtype": "F32", "shape": list(value.shape)}
        header[name]["data_offsets"] = [begin, reached]
    text = json.dumps(header).encode()
    path = folder / "predictor" / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + reached)
    assert path.stat().st_size > 2**30
    refused(folder, "predictor", "model.safetensors", "sparse")


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("part", SIZES)
def test_a_pickle_by_the_name_of_weights_is_never_opened(folder, part, protocol, tmp_path):
    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harmed",)

    (folder / part / "model.safetensors").write_bytes(pickle.dumps(Harm(), protocol))
    refused(folder, part, "model.safetensors", "safetensors")
    torch.save({"a": torch.ones(3)}, folder / part / "model.safetensors")
    refused(folder, part, "model.safetensors", "safetensors")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("part", SIZES)
@pytest.mark.parametrize("size", [0, 1, 8, 9, 500, -4, -1])
def test_a_file_that_was_cut_is_refused(folder, part, size):
    path = folder / part / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(folder, part, f"{part}{os.sep}model.safetensors", "cannot be read as safetensors")


def test_a_file_with_more_than_its_header_says_is_refused(folder):
    path = folder / "predictor" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    refused(folder, "predictor", "model.safetensors", "not whole")


# Values.


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("part", SIZES)
def test_a_weight_that_is_not_finite_is_named(folder, part, kind, wrong):
    """At T=0 a plausible forecast came of NaN weights, in silence."""
    path = folder / part / "model.safetensors"
    tensors = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in load_file(path).items()
    }
    name = next(name for name in tensors if name.endswith("proj.weight") or name == "inner.weight")
    tensors[name].view(-1)[3] = wrong
    save_file(tensors, path)
    refused(folder, part, name, f"{part}{os.sep}model.safetensors", "1 of ", "not finite")


def test_numbers_that_float32_does_not_have_are_not_finite(folder):
    path = folder / "predictor" / "model.safetensors"
    tensors = {name: value.double() for name, value in load_file(path).items()}
    tensors[NAME][0] = 1e300
    save_file(tensors, path)
    refused(folder, "predictor", NAME, "not finite")


def test_large_numbers_whose_sum_overflows_are_finite_all_the_same(folder):
    path = folder / "alpha" / "model.safetensors"
    tensors = load_file(path)
    tensors["inner.weight"][:] = 3e38
    save_file(tensors, path)
    assert torch.equal(load(folder, "alpha").inner.weight, tensors["inner.weight"])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_published_weights_may_be_of_another_float(folder, kind):
    """They become float32, and the rotary frequencies are not the rounded ones (fault 11)."""
    for part in ("tokenizer", "predictor", "alpha"):
        exact = load(folder, part).state_dict()
        path = folder / part / "model.safetensors"
        tensors = {
            name: value.to(kind) if value.is_floating_point() else value
            for name, value in load_file(path).items()
        }
        save_file(tensors, path)
        for name, value in load(folder, part).state_dict().items():
            assert value.dtype == exact[name].dtype
            torch.testing.assert_close(value, exact[name], rtol=1e-2, atol=1e-3)
            if "inv_freq" in name:
                assert torch.equal(value, exact[name])


@pytest.mark.parametrize(
    ("part", "name", "change"),
    [
        ("predictor", "transformer.1.self_attn.rotary.inv_freq", lambda value: value * 1.01),
        ("predictor", "dep_layer.cross_attn.rotary.inv_freq", torch.zeros_like),
        ("tokenizer", "encoder.0.self_attn.rotary.inv_freq", lambda value: -value),
        ("tokenizer", "tokenizer.bsq.basis", lambda value: value + 1),
        ("tokenizer", "tokenizer.bsq.group_basis", torch.zeros_like),
    ],
)
def test_a_buffer_that_does_not_follow_from_the_sizes_is_refused(folder, part, name, change):
    path = folder / part / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path)
    refused(folder, part, name, "model.safetensors", "follows from the sizes")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_weights_that_are_no_floats_are_refused(folder, kind):
    path = folder / "predictor" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {NAME: tensors[NAME].to(kind)}, path)
    refused(folder, "predictor", NAME, "expected one of F64, F32, F16, BF16")


def test_a_basis_of_floats_is_refused(folder):
    path = folder / "tokenizer" / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"tokenizer.bsq.basis": tensors["tokenizer.bsq.basis"].float()}, path)
    refused(folder, "tokenizer", "basis is F32, expected I64")


# Paths.


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(folder, file):
    path = folder / "predictor" / file
    path.unlink()
    os.mkfifo(path)
    refused(folder, "predictor", file)
    if file == "config.json":
        with pytest.raises(CheckpointError):
            sizes_of(folder / "predictor", "predictor")


@pytest.mark.parametrize("part", SIZES)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file(folder, part, file):
    (folder / part / file).unlink()
    (folder / part / file).mkdir()
    refused(folder, part, file)


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
@pytest.mark.parametrize("part", SIZES)
def test_links(folder, part):
    """The Hub's cache is made of links; one to itself leads nowhere."""
    path = folder / part / "model.safetensors"
    path.rename(folder / "blob")
    path.symlink_to(folder / "blob")
    load(folder, part)
    path.unlink()
    path.symlink_to(path)
    refused(folder, part, "model.safetensors")


@pytest.mark.parametrize(
    "name", ["a" * 5000, "/" + "a" * 5000, "a\0b", "~nobody-of-that-name/x", "\ud800", "x\x1b[2Jy"]
)
def test_names_that_no_folder_can_have(name):
    for kind in (Kronos, KronosTokenizer):
        with pytest.raises(CheckpointError) as caught:
            kind.from_pretrained(name)
        assert str(caught.value).isprintable()
    with pytest.raises(CheckpointError):
        AlphaHead.from_pretrained(name, 16, FEATURES)
    with pytest.raises(CheckpointError):
        sizes_of(name, "predictor")


@pytest.mark.parametrize("name", [None, 7, b"nano"])
def test_what_is_no_path(name):
    for attempt in (Kronos.from_pretrained, lambda name: AlphaHead.from_pretrained(name, 16, [])):
        with pytest.raises(CheckpointError):
            attempt(name)


# Saving.


def test_files_of_equal_weights_are_equal_bytes(folder, tmp_path):
    """The library writes the two entries of a predictor's header in any order."""
    code = (
        "import sys; from pathlib import Path\n"
        "from kronos_qlib.model.tokenizer import KronosTokenizer\n"
        "from kronos_qlib.model.transformer import Kronos\n"
        "from kronos_qlib.model.alpha_head import AlphaHead\n"
        "source, target = map(Path, sys.argv[1:])\n"
        "tokenizer = KronosTokenizer.from_pretrained(source)\n"
        "tokenizer.save_pretrained(target / 'tokenizer')\n"
        "Kronos.from_pretrained(source).save_pretrained(target / 'predictor', tokenizer, 64)\n"
        "head = AlphaHead.from_pretrained(source / 'alpha', 16, ['one', 'two', 'three'])\n"
        "head.save_pretrained(target / 'alpha', ['one', 'two', 'three'])\n"
    )
    targets = [tmp_path / seed for seed in ("1", "2")]
    for target in targets:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), str(target)],
            env={**os.environ, "PYTHONHASHSEED": target.name},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for part in SIZES:
        for file in ("config.json", "model.safetensors"):
            saved = [(place / part / file).read_bytes() for place in targets]
            assert saved[0] == saved[1] == (folder / part / file).read_bytes(), (part, file)
        assert (folder / part / "config.json").read_bytes().endswith(b"}\n")


def test_the_file_is_the_library_s_own(tiny_pair):
    """With one text, whose order cannot differ, safetensors writes the same bytes."""
    for net in tiny_pair:
        expected = save(dict(net.state_dict()), metadata={"a": "b"})
        assert weights.to_bytes(net, {"a": "b"}) == expected
        assert weights.to_bytes(net) == save(dict(net.state_dict()))
    texts = {"b": "1", "a": "ü\n", "c": ""}
    backwards = dict(reversed(texts.items()))
    assert weights.to_bytes(net, texts) == weights.to_bytes(net, backwards)


def test_loading_draws_no_random_number(folder):
    before = torch.get_rng_state()
    for part in SIZES:
        load(folder, part)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_of_a_pickled_model_are_checked_like_a_file(tiny_pair, make_pair):
    """They were read without a look at their numbers."""
    _, net = tiny_pair
    _, other = make_pair(seed=1)
    weights.fill_from_bytes(net, weights.to_bytes(other), "the pickle")
    assert fingerprint(net) == fingerprint(other)
    other.norm.weight.data[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"norm.weight in the pickle has 1 of 16 numbers"):
        weights.fill_from_bytes(net, weights.to_bytes(other), "the pickle")
    with pytest.raises(CheckpointError, match="the pickle cannot be read as safetensors"):
        weights.fill_from_bytes(net, b"what is this", "the pickle")


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are for administrators there")
@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_what_is_no_file_is_not_told_as_missing(folder, put, file):
    """It was told that config.json is missing in a folder that holds config.json."""
    path = folder / "predictor" / file
    path.unlink()
    put(path)
    refused(folder, "predictor", file, "is no file but a folder, a pipe or a broken link")
