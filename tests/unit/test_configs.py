"""Settings are checked at birth, and an error says which key of which file to correct."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict

import pytest

from kronos_qlib.errors import ConfigError
from kronos_qlib.inference.sampling import SamplingConfig
from kronos_qlib.model.sizes import PredictorConfig, TokenizerConfig
from kronos_qlib.settings import from_mapping
from kronos_qlib.training.stage_settings import TrainingConfig

NETWORK = {
    "d_model": 16,
    "n_heads": 2,
    "ff_dim": 24,
    "s1_bits": 4,
    "s2_bits": 3,
    "ffn_dropout_p": 0.1,
    "attn_dropout_p": 0,
    "resid_dropout_p": 0.0,
}
PREDICTOR = NETWORK | {"n_layers": 2, "token_dropout_p": 0.0, "learn_te": True}
TOKENIZER = NETWORK | {
    "d_in": 6,
    "n_enc_layers": 2,
    "n_dec_layers": 2,
    "beta": 0.05,
    "gamma0": 1.0,
    "gamma": 1.1,
    "zeta": 0.05,
    "group_size": 7,
}
VALID = {
    PredictorConfig: PREDICTOR,
    TokenizerConfig: TOKENIZER,
    SamplingConfig: {},
    TrainingConfig: {},
}


@pytest.mark.parametrize("kind", VALID)
def test_a_mapping_comes_back_as_it_went_in(kind):
    config = from_mapping(kind, VALID[kind])
    assert from_mapping(kind, asdict(config)) == config
    with pytest.raises(FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SamplingConfig, {"temprature": 1}, "'temprature'; did you mean 'temperature'"),
        (SamplingConfig, {"zzz": 1}, "'zzz'; known: paths, temperature"),
        (SamplingConfig, {1: 1}, "no setting 1"),
        (SamplingConfig, ["paths"], "must be a mapping"),
        (PredictorConfig, {}, "lacks s1_bits, s2_bits"),
    ],
)
def test_keys_that_are_wrong(kind, values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(kind, values)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SamplingConfig, {"paths": 0}, "paths must be a whole number of at least 1, got 0"),
        (SamplingConfig, {"paths": 2.0}, "paths must be a whole number"),
        (SamplingConfig, {"paths": True}, "paths must be a whole number"),
        (SamplingConfig, {"top_k": None}, "top_k must be a whole number of at least 0"),
        (SamplingConfig, {"top_p": 0}, r"top_p must lie in \(0, 1\], got 0"),
        (SamplingConfig, {"top_p": 1.1}, r"top_p must lie in \(0, 1\]"),
        (SamplingConfig, {"temperature": -0.1}, "temperature must not be negative"),
        (SamplingConfig, {"temperature": float("nan")}, "temperature must be a number, got nan"),
        (SamplingConfig, {"temperature": "0.6"}, "temperature must be a number, got '0.6'"),
        (SamplingConfig, {"rotate_s2": "no"}, "rotate_s2 must be true or false, got 'no'"),
        (TrainingConfig, {"epochs": 0}, "epochs"),
        (TrainingConfig, {"patience": 0}, "patience"),
        (TrainingConfig, {"seed": -1}, "seed"),
        (TrainingConfig, {"learning_rate": 0}, "learning_rate must be above 0"),
        (TrainingConfig, {"clip_norm": 0}, "clip_norm must be above 0"),
        (TrainingConfig, {"weight_decay": -1}, "weight_decay"),
        (TrainingConfig, {"warmup_share": 1}, r"warmup_share must lie in \[0, 1\)"),
        (TrainingConfig, {"teacher_forcing": "off"}, "teacher_forcing must be true or false"),
        (PredictorConfig, {"n_heads": 3}, "d_model 16 must split into 3 heads"),
        (PredictorConfig, {"n_heads": 16}, "heads of even width"),
        (PredictorConfig, {"d_model": 12, "n_heads": 2}, "s2 head's 4 heads"),
        (PredictorConfig, {"s1_bits": 21}, "s1_bits must be at most 20"),
        (PredictorConfig, {"learn_te": 1}, "learn_te must be true or false, got 1"),
        (PredictorConfig, {"token_dropout_p": 1}, r"token_dropout_p must lie in \[0, 1\)"),
        (TokenizerConfig, {"group_size": 2}, r"group_size 2 must divide s1_bits \+ s2_bits = 7"),
        (TokenizerConfig, {"beta": None}, "beta must be a number"),
    ],
)
def test_values_that_cannot_work(kind, values, message):
    """The error names the file, so that whoever wrote the value finds it."""
    with pytest.raises(ConfigError, match=f"^some.yaml: .*{message}"):
        from_mapping(kind, VALID[kind] | values, where="some.yaml")
