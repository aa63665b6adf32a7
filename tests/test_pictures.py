"""Pictures made from a seed."""

import hashlib

import numpy as np
import pytest

from solar.pictures import pictures


def test_the_same_on_every_machine():
    # Frames are named by their hash, and a receiver that measures them again has to get the same.
    found = hashlib.sha256(pictures(30, 56, 0).tobytes()).hexdigest()
    assert found == "a3c1d26f6c15c5be0d5bab19804d5b1729c9dabd36460cb00d197fe5a075bff0"


@pytest.mark.parametrize("size", [8, 14, 112])
def test_shapes_and_a_digit_in_every_three(size):
    from sklearn.datasets import load_digits

    found = pictures(12, size, 3)
    assert found.shape == (12, size, size, 3) and found.dtype == np.uint8
    assert all(picture.std() > 0 for picture in found[2::3])
    if size == 8:  # not resized
        known = {np.uint8(15 * image).tobytes() for image in load_digits().images}
        assert all(picture[..., 0].tobytes() in known for picture in found[2::3])
        assert not any(picture[..., 0].tobytes() in known for picture in found[::3])


def test_a_function_of_the_seed_and_longer_ones_go_on():
    assert (pictures(5, 28, 1) == pictures(9, 28, 1)[:5]).all()
    assert (pictures(5, 28, 1) != pictures(5, 28, 2)).any()


def test_grey_and_coloured_and_of_many_scales():
    leaves = np.delete(pictures(300, 28, 0), np.s_[2::3], axis=0).astype(int)
    grey = (np.ptp(leaves, axis=-1) == 0).all(axis=(1, 2))
    assert 0.4 < grey.mean() < 0.7
    # Neighbours differ less than distant pixels do, in pictures of every kind together.
    near = np.abs(np.diff(leaves, axis=2)).mean()
    far = np.abs(leaves[:, :, 14:] - leaves[:, :, :14]).mean()
    assert near < far / 3
    assert 80 < leaves.mean() < 175
