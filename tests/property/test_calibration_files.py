"""Files of calibrations, whole and damaged in every field: the same again, or a named error."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.calibration.calibration import DAY, INTRADAY, OWN, Calibration, Fit
from kronos_qlib.calibration.market_state import MARKET
from kronos_qlib.calibration.path_terms import PathTerms
from kronos_qlib.calibration.season import Season
from kronos_qlib.calibration.spread import MOST_FACTOR, SpreadModel
from kronos_qlib.errors import ConfigError

factors = st.floats(-MOST_FACTOR, MOST_FACTOR, allow_nan=False)


def spreads(names):
    many = st.tuples(*[factors] * len(names))
    return st.builds(
        SpreadModel,
        st.just(names),
        st.tuples(factors, factors, factors),
        many,
        many,
        st.floats(2.1, 150),
        st.integers(1, 500),
        st.integers(1, 10**6),
    )


fits = st.builds(
    Fit,
    spreads(OWN),
    st.none() | spreads((*OWN, *MARKET)),
    st.none() | st.builds(Season, st.tuples(*[st.floats(-3, 3)] * 24)),
    st.none()
    | st.builds(
        PathTerms,
        factors,
        factors,
        st.lists(factors, min_size=1, max_size=5).map(tuple),
        st.integers(1, 10**6),
    ),
)
calibrations = st.builds(
    Calibration,
    st.dictionaries(st.sampled_from([DAY, INTRADAY]), fits, min_size=1),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.floats(0, 10), max_size=3),
    st.datetimes().map(lambda time: time.isoformat(" ", "minutes")),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


@settings(max_examples=30)
@given(calibrations)
def test_what_is_saved_is_read_again_to_the_last_bit(tmp_path_factory, calibration):
    path = tmp_path_factory.mktemp("files") / "calibration.json"
    calibration.save(path)
    again = Calibration.load(path)
    assert again == calibration
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def whole():
    def spread(names):
        numbers = tuple(np.linspace(-0.2, 0.3, len(names)).tolist())
        return SpreadModel(names, (0.1, 0.0, 0.0), numbers, numbers, 5.0, 10, 500)

    fit = Fit(
        spread(OWN),
        spread((*OWN, *MARKET)),
        Season((0.1,) * 24),
        PathTerms(0.1, 0.2, (0.3, 0.4), 50),
        (60, 1440),
    )
    return Calibration({DAY: fit, INTRADAY: fit}, "a-b", {"top_p": 0.9}, "2024-03-01", "a test")


def places(found, prefix=()):
    """Paths to every value of nested mappings and lists."""
    items = found.items() if isinstance(found, dict) else enumerate(found)
    for key, value in items:
        yield (*prefix, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*prefix, key))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "calibration.json"
    whole().save(path)
    return path, json.loads(path.read_text(encoding="utf-8"))


def holder_of(found, place):
    for key in place[:-1]:
        found = found[key]
    return found


def refuses(folder, found):
    path = folder / "damaged.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"damaged\.json holds no calibration"):
        Calibration.load(path)


TEXTS = {"checkpoint", "about", "until"}
DAMAGES = [[], {}, [[1.0]], {"a": 1}, True, -1e12, 10**17, "x", "", [None], [1, "a"], 1e308]


def test_every_field_of_another_type_is_refused(saved, tmp_path):
    _, found = saved
    count = 0
    for place in places(found):
        for damage in DAMAGES:
            if place[-1] in TEXTS and isinstance(damage, str) and place[-1] != "until":
                continue
            if place[0] == "sampling" and (
                damage in ({}, {"a": 1}) or (len(place) > 1 and type(damage) in (int, float))
            ):
                continue  # sampling is any mapping of numbers
            broken = copy.deepcopy(found)
            holder_of(broken, place)[place[-1]] = damage
            refuses(tmp_path, broken)
            count += 1
    assert count > 1000


def test_every_field_that_is_missing_or_null_is_refused(saved, tmp_path):
    _, found = saved
    optional = {"market", "season", "paths", "steps", "about", DAY, INTRADAY, "top_p"}
    for place in places(found):
        broken = copy.deepcopy(found)
        holder_of(broken, place)[place[-1]] = None
        if place[-1] not in optional - {"about", DAY, INTRADAY, "top_p"}:
            refuses(tmp_path, broken)
        broken = copy.deepcopy(found)
        del holder_of(broken, place)[place[-1]]
        if place[-1] not in optional and place[-2:-1] not in {("usual",), ("steps",)}:
            refuses(tmp_path, broken)


def test_keys_that_are_unknown_are_refused(saved, tmp_path):
    _, found = saved
    mappings = [(), *(place for place in places(found))]
    for place in mappings:
        broken = copy.deepcopy(found)
        inner = holder_of(broken, (*place, None))
        if isinstance(inner, dict) and place != ("sampling",):
            inner["what"] = 1.0
            refuses(tmp_path, broken)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**30, -(10**400), 1e300]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(data=st.data())
def test_any_damage_is_a_named_error_or_a_calibration_that_works(saved, data):
    path, found = saved
    broken = copy.deepcopy(found)
    place = data.draw(st.sampled_from(list(places(found))))
    holder_of(broken, place)[place[-1]] = data.draw(values)
    damaged = path.with_name("any.json")
    damaged.write_text(json.dumps(broken), encoding="utf-8")
    try:
        calibration = Calibration.load(damaged)
    except ConfigError as refused:
        assert "any.json" in str(refused)
        return
    rng = np.random.default_rng(0)
    bars = 10 * np.exp(0.01 * rng.normal(size=(2, 30, 6)))
    stamps = np.zeros((2, 33, 5), dtype=int)
    paths = 10 * np.exp(0.01 * rng.normal(size=(2, 12, 3, 6)))
    if DAY in calibration.fits:
        moved = calibration.apply(
            paths, bars, stamps[:, :30], stamps[:, 30:], market=np.zeros((2, 2))
        )
        assert np.isfinite(moved).all()


@settings(max_examples=100)
@given(st.binary(max_size=200), st.integers(0, 3000))
def test_any_bytes_are_a_named_error(saved, inserted, at):
    path, _ = saved
    data = path.read_bytes()
    damaged = path.with_name("bytes.json")
    for content in (inserted, data[:at] + inserted):
        damaged.write_bytes(content)
        with pytest.raises(ConfigError, match=r"bytes\.json"):
            Calibration.load(damaged)


def test_no_file_is_a_named_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match=tmp_path.name):
        Calibration.load(tmp_path)
