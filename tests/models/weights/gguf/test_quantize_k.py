"""How much the K types lose: against a plain scheme, against the best there is, on hard blocks.

The references work with real scales, which the format does not even have: it rounds them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.weights.gguf.dequantize import dequantize
from models.weights.gguf.format import QuantType
from models.weights.gguf.quantize import quantize

# Elements of a sub-block and the greatest q; for signed types the number of levels on each side.
OFFSET = {QuantType.Q2_K: (16, 3), QuantType.Q4_K: (32, 15), QuantType.Q5_K: (32, 31)}
SIGNED = {QuantType.Q3_K: (16, 4), QuantType.Q6_K: (16, 32)}
TYPES = [*OFFSET, *SIGNED]


def weights(rows: int) -> np.ndarray:
    """Normally distributed numbers like those of a trained matrix, float32 [rows, 256]."""
    return (np.random.default_rng(1).normal(size=(rows, 256)) * 0.02).astype(np.float32)


def grids(x: np.ndarray, type: QuantType, spreads: np.ndarray) -> list[np.ndarray]:
    """Reconstructions of sub-blocks [n, elements], one for every way to place the grid.

    With minima both ends of the grid move on their own, each to `spreads` times the extreme.
    """
    if type in SIGNED:
        levels = SIGNED[type][1]
        widest = np.take_along_axis(x, np.abs(x).argmax(1, keepdims=True), 1)
        scales = [widest / -levels * spread for spread in spreads]
        return [scale * (x / scale).round().clip(-levels, levels - 1) for scale in scales]
    levels = OFFSET[type][1]
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    reconstructions = []
    for lower in spreads:
        for upper in spreads:
            scale = (high * upper - low * lower) / levels
            q = ((x - low * lower) / scale).round().clip(0, levels)
            reconstructions.append(scale * q + low * lower)
    return reconstructions


def error(values: np.ndarray, x: np.ndarray) -> float:
    """Root of the mean squared error, relative to the values'."""
    return float(np.sqrt(((values - x) ** 2).sum() / (x**2).sum()))


def round_trip(x: np.ndarray, type: QuantType) -> np.ndarray:
    return dequantize(quantize(torch.from_numpy(x), type), type).numpy()


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_search_beats_scales_from_the_extremes_clearly(type):
    x = weights(64)
    sub_blocks = x.reshape(-1, (OFFSET | SIGNED)[type][0])
    (plain,) = grids(sub_blocks, type, np.ones(1))
    assert error(round_trip(x, type), x) < 0.95 * error(plain, sub_blocks)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_search_comes_near_the_best_of_many_grids(type):
    x = weights(16)
    sub_blocks = x.reshape(-1, (OFFSET | SIGNED)[type][0])
    spreads = np.linspace(0.6, 1.15, 120 if type in SIGNED else 24)
    squares = [((values - sub_blocks) ** 2).sum(1) for values in grids(sub_blocks, type, spreads)]
    best = np.sqrt(np.min(squares, axis=0).sum() / (x**2).sum())
    # Rounding scales to 4 or 6 bits alone costs a few hundredths.
    assert error(round_trip(x, type), x) < 1.06 * best


@pytest.mark.parametrize(
    ("type", "limit"),
    [
        (QuantType.Q2_K, 0.27),
        (QuantType.Q3_K, 0.146),
        (QuantType.Q4_K, 0.0715),
        (QuantType.Q5_K, 0.0355),
        (QuantType.Q6_K, 0.0169),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_normal_weights_lose_no_more_than_measured(type, limit):
    x = weights(64)
    assert error(round_trip(x, type), x) < limit


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_zeros_stay_zeros(type):
    x = np.zeros((1, 256), np.float32)
    assert not round_trip(x, type).any()


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
@pytest.mark.parametrize("value", [0.25, -3.0, 1e-4, 6e4])
def test_constant_blocks_are_kept(type, value):
    x = np.full((1, 256), value, np.float32)
    # Half precision has 11 bits, fewer among its denormals; a scale of 4 to 8 bits rounds as well.
    np.testing.assert_allclose(round_trip(x, type), x, rtol=0.04)


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_an_outlier_spoils_its_own_sub_block_only(type):
    x = weights(1)
    x[0, 5] = 2.0
    elements = (OFFSET | SIGNED)[type][0]
    values = round_trip(x, type)
    assert abs(values[0, 5] - 2.0) < 0.1
    # Q2_K's scales have 15 levels, too few for both: there the rest is all but lost.
    limit = 1.1 if type is QuantType.Q2_K else 0.4
    assert error(values[:, elements:], x[:, elements:]) < limit


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_weights_far_below_half_precision_survive_as_its_smallest_numbers(type):
    x = weights(2) * np.float32(1e-4)
    values = round_trip(x, type)
    assert np.isfinite(values).all()
    assert error(values, x) < 0.8


@pytest.mark.parametrize("type", OFFSET, ids=lambda type: type.name)
def test_minima_follow_weights_that_are_all_of_one_sign(type):
    random = np.random.default_rng(2)
    for sign in (1, -1):
        x = (sign * random.uniform(0.5, 1.0, (8, 256))).astype(np.float32)
        assert error(round_trip(x, type), x) < 0.5 / OFFSET[type][1]
