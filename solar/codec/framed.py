"""Framed: what both ends make of a base's frames for the layers that a file sends.

The frames of a layer's input and output (frame_file.py) become reflections, which turn its factors
into the metric and back (metric.py), and profiles, the variances that entries are expected to have
there (profiled.py), with the offsets that a file may bring (bands.py).
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from solar.codec import bands, frame_file, metric
from solar.codec.container import Base
from solar.codec.frame_file import Frame, FramesFile
from solar.codec.profiled import Dials, Lines


def by_layer(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, make: Callable[[Frame, int], Any]
) -> dict[str, tuple[Any, Any]]:
    """What `make` makes of the frames of input and output (side 0 and 1) of every layer that is
    sent, once a frame. Raises SolarError where a frame does not fit."""
    made: dict[int, Any] = {}
    found = {}
    for name, shape, rank in zip(known.names, known.shapes, ranks, strict=True):
        if rank == 0:
            continue
        for side, index in enumerate(frames.layers[name]):
            frame = frame_file.frame_of(frames, index, shape[1 - side])
            if index not in made:
                made[index] = make(frame, side)
        into, out = frames.layers[name]
        found[name] = made[into], made[out]
    return found


Offsets = Mapping[tuple[int, int], np.ndarray]  # of bands.py, by the shape of a layer
NONE: Offsets = {}


def profiles(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, dials: Dials, offsets: Offsets
) -> list:
    """Profiles (2, m + n) of the first component and of later ones of every layer that is sent,
    None of the others."""
    slopes = dials.slope, dials.out
    both = by_layer(known, ranks, frames, lambda f, side: frame_file.profile(f, slopes[side]))
    made: dict[tuple, np.ndarray] = {}
    found = []
    for name, shape in zip(known.names, known.shapes, strict=True):
        if name not in both:
            found.append(None)
            continue
        key = (*frames.layers[name], shape)
        if key not in made:
            sides, own = both[name][::-1], offsets.get(shape)  # the left side is the output
            made[key] = np.concatenate(
                [np.stack([x, x]) for x in sides] if own is None
                else [bands.adjusted(x, own[side]) for side, x in enumerate(sides)], axis=1
            )  # fmt: skip
        found.append(made[key])
    return found


def reflections(known: Base, ranks: tuple[int, ...], frames: FramesFile) -> dict:
    """Reflections of inputs and of outputs by the name of the layer, of those that are sent."""
    # LAPACK lets other threads run; frames are read by this one.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = by_layer(
            known, ranks, frames, lambda frame, side: pool.submit(metric.reflections, frame)
        )
        return {name: (own.result(), other.result()) for name, (own, other) in begun.items()}


def lines_of(
    known: Base, ranks: tuple[int, ...], frames: FramesFile, dials: Dials, energies: np.ndarray,
    values: np.ndarray | None = None, offsets: Offsets = NONE,
) -> Lines:  # fmt: skip
    counts = np.array(ranks, np.int64)
    each = profiles(known, ranks, frames, dials, offsets)
    whole = [
        p[np.minimum(np.arange(rank), 1)].ravel()
        for p, rank in zip(each, ranks, strict=True)
        if rank
    ]
    return Lines(
        energies,
        np.repeat(np.cumsum(counts) - counts, counts),
        np.repeat(np.array(known.shapes, np.int64).reshape(-1, 2), counts, axis=0),
        np.concatenate(whole) if whole else np.zeros(0, np.int64),
        values,
    )
