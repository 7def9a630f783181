"""Any change to the files of a checkpoint: it loads, or a CheckpointError says why, at once."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import load_part, peak_memory

from kronos_qlib.errors import CheckpointError
from kronos_qlib.model.alpha_head import AlphaHead

NAMES = ["one", "two"]
PARTS = ("tokenizer", "predictor", "alpha")

numbers = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([64, 1000, 2**16, 2**31, 2**53, 10**17, 10**30]),
    st.floats(),
)
scalars = st.one_of(numbers, st.booleans(), st.none(), st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def sound(make_pair, tmp_path_factory):
    """The bytes of both files of every part."""
    folder = tmp_path_factory.mktemp("sound")
    tokenizer, predictor = make_pair(n_layers=1)
    tokenizer.save_pretrained(folder / "tokenizer")
    predictor.save_pretrained(folder / "predictor", tokenizer, 64)
    AlphaHead(16, 2, 4, 8, 0.0).save_pretrained(folder / "alpha", NAMES)
    found = {}
    for part in PARTS:
        whole = (folder / part / "model.safetensors").read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
        config = json.loads((folder / part / "config.json").read_text())
        found[part] = config, header, data
        load(folder, part)
    return found


load = partial(load_part, features=NAMES)


def load_or_refuse(tmp_path_factory, part, config, weights):
    folder = tmp_path_factory.mktemp("changed")
    (folder / part).mkdir()
    (folder / part / "config.json").write_bytes(config)
    (folder / part / "model.safetensors").write_bytes(weights)
    memory = peak_memory()
    try:
        net = load(folder, part)
    except CheckpointError as refusal:
        message = str(refusal)
        assert part in message
        assert len(message) < 2000
        message.encode()
    else:
        for value in net.state_dict().values():
            assert not value.is_meta
            assert torch.isfinite(value).all()
    assert peak_memory() - memory < 2**27


def to_file(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@settings(max_examples=150)
@given(part=st.sampled_from(PARTS), data=st.data())
def test_any_change_to_a_config(sound, tmp_path_factory, part, data):
    config, header, rest = sound[part]
    config = dict(config)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*config, "unknown"]))
        if data.draw(st.integers(0, 4)):
            config[key] = data.draw(values)
        else:
            config.pop(key, None)
    load_or_refuse(tmp_path_factory, part, json.dumps(config).encode(), to_file(header, rest))


@settings(max_examples=150)
@given(part=st.sampled_from(PARTS), data=st.data())
def test_any_change_to_a_header(sound, tmp_path_factory, part, data):
    config, header, rest = sound[part]
    header = json.loads(json.dumps(header))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from([*header, "unknown"]))
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "all", "none"]))
        if field == "none":
            header.pop(name, None)
        elif field == "all" or not isinstance(header.get(name), dict):
            header[name] = data.draw(values)
        else:
            kinds = st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3"])
            lists = st.lists(numbers, max_size=4)
            header[name][field] = data.draw(kinds if field == "dtype" else st.one_of(lists, values))
    load_or_refuse(tmp_path_factory, part, json.dumps(config).encode(), to_file(header, rest))


@settings(max_examples=150)
@given(part=st.sampled_from(PARTS), file=st.integers(0, 1), data=st.data())
def test_any_bytes_in_either_file(sound, tmp_path_factory, part, file, data):
    config, header, rest = sound[part]
    both = [json.dumps(config).encode(), to_file(header, rest)]
    changed = bytearray(both[file])
    end = len(changed) if data.draw(st.booleans()) else min(len(changed), 3000)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, end))
        change = data.draw(st.sampled_from(["set", "insert", "cut", "repeat"]))
        if change == "cut":
            del changed[place : place + data.draw(st.integers(1, 4000))]
        elif change == "repeat":
            changed[place:place] = changed[place : place + data.draw(st.integers(1, 40))]
        else:
            room = place + (1 if change == "set" else 0)
            changed[place:room] = data.draw(st.binary(min_size=1, max_size=8))
    both[file] = bytes(changed)
    load_or_refuse(tmp_path_factory, part, *both)
