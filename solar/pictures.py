"""Pictures: images made from a seed, for an image model to be run on where no data is given.

Every third is one of scikit-learn's handwritten digits. The others are dead leaves, shapes of every
scale that lie over one another and have statistics near those of photographs (Lee, Mumford and
Huang, International Journal of Computer Vision 41, 2001; used for training by Baradad et al., arXiv
2106.05963); half of them have few shapes on a plain ground, as catalogues have, and half are grey.
All is reckoned in integers, so that every machine makes the same.
"""

import numpy as np
from numpy.random import PCG64, Generator

ONE = 1 << 10  # of fixed-point numbers
FEW, MANY = 5, 23  # shapes at most
CORNERS = 6  # of a shape at most
GREY = np.array([77, 150, 29])  # what red, green and blue weigh, of 256


def pictures(count: int, size: int, seed: int) -> np.ndarray:
    """uint8 (count, size, size, 3); the first of them are the same whatever the count."""
    drawn = Generator(PCG64(seed))
    digits = _digits()
    order = drawn.permutation(len(digits))
    found = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        third, rest = divmod(i, 3)
        if rest == 2:
            found[i] = _enlarged(digits[order[third % len(order)]], size)
        else:
            found[i] = _leaves(drawn, size)
    return found


def _digits() -> np.ndarray:
    """uint8 (1797, 8, 8)."""
    from sklearn.datasets import load_digits

    return np.uint8(15 * load_digits().images)


def _enlarged(image: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    whole = Image.fromarray(image).convert("RGB")
    return np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR))


def _leaves(drawn: Generator, size: int) -> np.ndarray:
    few = bool(drawn.integers(2))
    found = (_plain if few else _texture)(drawn, size)
    for _ in range(int(drawn.integers(1, (FEW if few else MANY) + 1))):
        inside = _shape(drawn, size)
        fill = (_plain if drawn.integers(2) else _texture)(drawn, size)
        found = np.where(inside[..., None], fill, found)
    if drawn.integers(2):
        found = np.repeat((found @ GREY >> 8)[..., None], 3, -1)
    return found


def _plain(drawn: Generator, size: int) -> np.ndarray:
    """One colour, uint8 (size, size, 3): black or white one time in two."""
    kind = int(drawn.integers(4))
    colour = drawn.integers(0, 256, 3) if kind > 1 else np.full(3, 255 * kind)
    return np.broadcast_to(np.uint8(colour), (size, size, 3))


def _texture(drawn: Generator, size: int) -> np.ndarray:
    """Between two colours, uint8 (size, size, 3): as the sum of octaves of noise says, grids of
    random numbers interpolated, each twice as fine as the last and as high, half or a quarter."""
    fall, height, cells = int(drawn.integers(3)), ONE, 2
    total = np.zeros((size, size), np.int64)
    while cells <= size and height:
        grid = drawn.integers(0, ONE, (cells + 1, cells + 1))
        low, part = np.divmod(np.arange(size) * cells * ONE // size, ONE)
        rows = grid[low] * (ONE - part)[:, None] + grid[low + 1] * part[:, None]
        both = rows[:, low] * (ONE - part) + rows[:, low + 1] * part
        total += height * (both // ONE**2)
        cells, height = 2 * cells, height >> fall
    total -= total.min()
    share = (total * ONE // max(int(total.max()), 1))[..., None]
    first, last = drawn.integers(0, 256, (2, 3))
    return np.uint8((first * (ONE - share) + last * share) // ONE)


def _shape(drawn: Generator, size: int) -> np.ndarray:
    """Where a leaning ellipse is, or what half-planes about a point have in common, bool
    (size, size); between a half and a sixteenth of the picture, small ones more often."""
    y, x = np.ogrid[:size, :size]
    y, x = y - drawn.integers(size), x - drawn.integers(size)
    reach = max(2, size * ONE // int(drawn.integers(2 * ONE, 16 * ONE)))
    corners = int(drawn.integers(2, CORNERS + 1))
    if corners == 2:
        wide, high = drawn.integers(ONE // 3, ONE, 2)
        across = x * ONE + y * drawn.integers(-ONE, ONE)
        return (across // wide) ** 2 + (y * ONE // high) ** 2 <= reach**2
    inside = np.ones((size, size), bool)
    for down, right in drawn.integers(-ONE, ONE + 1, (corners, 2)):
        inside &= y * down + x * right <= reach * max(abs(down), abs(right))
    return inside
