"""A tensor that still lies in its file: what every reader of a format hands out."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Stored(NamedTuple):
    """``shape`` is known from the file's header; ``read()`` gives the values, from disk each time.

    Values are float32, or bfloat16 where the file has them so (integers stay what they are).
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
