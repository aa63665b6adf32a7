"""Numbers to bytes and back: floats, few-bit codes, steps of one byte."""

import math

import numpy as np
import pytest

from solar.codec import quantize


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9])
def test_float16_keeps_its_digits_at_any_scale(scale):
    values = scale * np.random.default_rng(0).normal(size=500).astype(np.float32)
    power = quantize.exponent(values, "float16")
    data = quantize.store(values, "float16", power)
    assert len(data) == 1000
    back = quantize.restore(data, "float16", power)
    assert np.max(np.abs(back - values)) < 2.0**-11 * np.max(np.abs(values))
    assert quantize.store(back, "float16", power) == data


def test_float32_is_exact():
    values = np.random.default_rng(1).normal(size=9).astype(np.float32)
    power = quantize.exponent(values, "float32")
    back = quantize.restore(quantize.store(values, "float32", power), "float32", power)
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits(bits):
    groups = np.random.default_rng(2).normal(size=(40, 64)).astype(np.float32)
    groups[3] = 0
    groups[5, 50:] = np.nan  # padding
    codes, steps = quantize.midrise(groups, bits)
    assert codes.max() <= 2**bits - 1 and steps.dtype == np.float16
    back = quantize.dequantize(codes, steps, bits)
    assert (back[3] == 0).all()
    real = ~np.isnan(groups)
    distortion = np.mean((back - groups)[real] ** 2) / np.mean(groups[real] ** 2)
    # Max 1960 for a Gaussian source: 0.3634, 0.1188, 0.01154; steps here adapt to each group.
    limit = {1: 0.38, 2: 0.13, 4: 0.013, 8: 1e-4}[bits]
    assert distortion < limit
    flat = codes[real]
    data = quantize.pack_bits(flat, bits)
    assert len(data) == math.ceil(len(flat) * bits / 8)
    np.testing.assert_array_equal(quantize.unpack_bits(data, bits, len(flat)), flat)


def test_wrong_codes_are_refused():
    with pytest.raises(ValueError, match="length"):
        quantize.unpack_bits(b"ab", 4, 3 + 2)
    with pytest.raises(ValueError, match="after"):
        quantize.unpack_bits(b"\xff", 1, 3)


def test_one_byte_steps_keep_their_digits_over_twenty_octaves():
    steps = np.geomspace(1e-9, 7e-4, 400)
    power = quantize.scale_power(steps.max())
    back = quantize.scale_steps(quantize.scale_bytes(steps, power), power)
    inside = steps > steps.max() * 2.0**-20
    assert (
        np.max(np.abs(back[inside] / steps[inside] - 1))
        < 2 ** (0.5 / quantize.SCALE_STEPS) - 1 + 1e-9
    )
    assert (back[~inside] < steps.max() * 2.0**-19).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_steps_for_are_near_the_best_of_many(bits):
    groups = np.random.default_rng(3).normal(size=(6, 80)).astype(np.float32)
    groups[0, 50:] = np.nan

    def error(steps):
        decoded = quantize.dequantize(quantize.codes(groups, steps, bits), steps, bits)
        return np.nansum((decoded - groups) ** 2, axis=1)

    found = error(quantize.steps_for(groups, bits))
    tried = np.min([error(np.full(6, s)) for s in np.geomspace(1e-3, 4, 600)], axis=0)
    assert (found < tried * (1.3 if bits == 8 else 1.03)).all()
