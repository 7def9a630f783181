"""Copies of the published weights in folders, and a Hub that is out of reach."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from kronos_qlib.errors import CheckpointError
from kronos_qlib.inference.predictor import KronosPredictor
from kronos_qlib.model.checkpoints import hub
from kronos_qlib.model.checkpoints.pretrained import SHAPES, is_published, sizes_of
from kronos_qlib.model.tokenizer import KronosTokenizer
from kronos_qlib.model.transformer import Kronos


def put(net, folder, **edits):
    """As the authors publish it: no entry of ours in the weights file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(net.config) | edits), encoding="utf-8")
    save_file(net.state_dict(), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """Random weights of the published sizes, side by side under the published names."""
    place = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    put(Kronos(**SHAPES["mini"]), place / "Kronos-mini")
    tokenizer = KronosTokenizer(**sizes_of("mini", "tokenizer"))
    put(tokenizer, place / "Kronos-Tokenizer-2k")
    put(tokenizer, place / "Kronos-Tokenizer-base")
    return place


def test_the_tokenizer_beside_is_found_by_the_predictors_sizes(layout, caplog):
    with caplog.at_level(logging.INFO, "kronos_qlib"):
        tokenizer = KronosTokenizer.from_pretrained(layout / "Kronos-mini")
    assert tokenizer.origin.name == str(layout / "Kronos-Tokenizer-2k")
    assert "its tokenizer is taken from" in caplog.text and "Kronos-Tokenizer-2k" in caplog.text
    net = Kronos.from_pretrained(layout / "Kronos-mini")
    assert net.origin.max_context == 2048  # the published one; 512 was taken of any folder
    KronosPredictor(net, tokenizer, device="cpu", max_context=2048)
    assert sizes_of(layout / "Kronos-mini", "tokenizer") == sizes_of("mini", "tokenizer")


def test_another_published_tokenizer_is_refused(layout, monkeypatch):
    net = Kronos.from_pretrained(layout / "Kronos-mini")
    for ask in (layout / "Kronos-Tokenizer-base", layout / "Kronos-mini"):
        monkeypatch.setenv("KRONOS_TOKENIZER", str(layout / "Kronos-Tokenizer-base"))
        tokenizer = KronosTokenizer.from_pretrained(ask)
        with pytest.raises(CheckpointError, match="trained with NeoQuasar/Kronos-Tokenizer-2k"):
            KronosPredictor(net, tokenizer, device="cpu")


def test_a_name_of_ones_own_is_given_by_the_environment(layout, tmp_path, monkeypatch):
    shutil.copytree(layout / "Kronos-mini", tmp_path / "mine")
    shutil.copytree(layout / "Kronos-Tokenizer-2k", tmp_path / "tokens")
    message = "no Kronos-Tokenizer-2k beside it.*KRONOS_TOKENIZER"
    with pytest.raises(CheckpointError, match=message):
        KronosTokenizer.from_pretrained(tmp_path / "mine")
    monkeypatch.setenv("KRONOS_TOKENIZER", str(tmp_path / "tokens"))
    tokenizer = KronosTokenizer.from_pretrained(tmp_path / "mine")
    assert tokenizer.origin.name == str(tmp_path / "tokens")
    KronosPredictor(Kronos.from_pretrained(tmp_path / "mine"), tokenizer, device="cpu")
    # It is for a predictor that lies alone: whoever holds both halves keeps his own.
    assert KronosTokenizer.from_pretrained("nano").origin.name == "nano"
    monkeypatch.setenv("KRONOS_TOKENIZER", str(tmp_path / "mine"))
    with pytest.raises(CheckpointError, match="a tokenizer was asked for"):
        KronosTokenizer.from_pretrained(tmp_path / "mine")


def test_published_weights_are_known_in_a_folder(layout, tmp_path):
    """`gentle` is their default; anything that we trained is not published, whatever its sizes."""
    assert is_published("small") and is_published("NeoQuasar/Kronos-small")
    assert is_published(layout / "Kronos-mini") and not is_published("nano")
    net = Kronos.from_pretrained(layout / "Kronos-mini")
    tokenizer = KronosTokenizer.from_pretrained(layout / "Kronos-mini")
    net.save_pretrained(tmp_path / "tuned" / "predictor", tokenizer)
    tokenizer.save_pretrained(tmp_path / "tuned" / "tokenizer")
    assert not is_published(tmp_path / "tuned") and not is_published(tmp_path / "tuned/predictor")
    other = put(Kronos(**(SHAPES["mini"] | {"n_layers": 1})), tmp_path / "Kronos-mini")
    assert not is_published(other) and not is_published(tmp_path)
    assert Kronos.from_pretrained(other).origin.repo is None


def test_published_weights_in_a_folder_are_moved_gently(layout):
    from kronos_qlib.plugin.model import KronosModel

    model = KronosModel(str(layout / "Kronos-mini"), training={"predictor": {}})
    assert model.training.preset == "gentle" and model.training.predictor.lora_rank == 8
    asked = KronosModel(
        str(layout / "Kronos-mini"), training={"preset": "published", "predictor": {}}
    )
    assert asked.training.preset == "published"


# The Hub.


def test_a_hub_out_of_reach_is_given_up_soon(monkeypatch):
    """Its client tries again for 31 s before it says that there is no network."""
    ended, answered = threading.Event(), threading.Event()

    def answer_late(*arguments, **named):
        ended.wait(60)
        answered.set()
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", answer_late)
    with pytest.raises(TimeoutError, match=r"gave no answer in 0\.2 s"):
        hub.reach("https://huggingface.co", 0.2)
    assert not answered.is_set()
    ended.set()


def test_no_way_to_the_hub_is_one_error_that_names_the_remedy(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CheckpointError, match=r"127.0.0.1:9 cannot be reached.*pass its folder"):
        Kronos.from_pretrained("someone/else")


def test_what_is_cached_needs_no_hub(layout, monkeypatch):
    def lost(endpoint):
        raise OSError("no route")

    here = layout / "Kronos-mini"
    monkeypatch.setattr(hub, "reach", lost)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repo, file, revision: str(here / file)
    )
    assert Kronos.from_pretrained("mini").origin.repo == "NeoQuasar/Kronos-mini"


def test_a_proxy_is_asked_in_the_hubs_place(monkeypatch):
    asked = []

    class Line:
        def close(self):
            pass

    def connect(place, timeout):
        asked.append(place)
        return Line()

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(hub, "proxy_bypass", lambda host: host == "mirror.local")
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy.example:3128"})
    hub.reach("https://huggingface.co")
    hub.reach("https://mirror.local")
    hub.reach("http://mirror.example:8080/hf")
    assert asked == [("proxy.example", 3128), ("mirror.local", 443), ("mirror.example", 8080)]
