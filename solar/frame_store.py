"""Frames of bases on this machine: made once, kept in the cache, found again by base or by hash."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from solar import packages
from solar.codec import container, frame_file
from solar.codec.container import Base, Watch, unwatched
from solar.codec.frame_file import FramesFile
from solar.errors import SolarError


def _folder() -> Path:
    return packages.cache_dir() / "frames"


def _mark(weights: Mapping[str, np.ndarray]) -> str:
    """A name for a base from the names of its projections and one of its weights."""
    # A classifier is there or not, depending on who opened the base.
    names = sorted(filter(_in_a_block, weights))
    digest = hashlib.sha256("\n".join(names).encode())
    return digest.hexdigest()[:8] + container.identify(weights, names[:1]).hash.hex()[:16]


def _in_a_block(name: str) -> bool:
    """Whether a weight is one of the numbered blocks', and no embedding or output head."""
    return any(map(str.isdigit, name.split(".")))


def keep(own: FramesFile, weights: Mapping[str, np.ndarray]) -> Path:
    """Puts frames of the base with these projections into the cache."""
    return frame_file.write(_folder() / f"{_mark(weights)}-{own.hash.hex()}.frames", own)


def known(weights: Mapping[str, np.ndarray], own: Base) -> FramesFile | None:
    """The newest frames in the cache that were measured on a base with these projections and, in
    the layers that `own` identifies, with these very weights."""
    found = _folder().glob(f"{_mark(weights)}-*.frames")
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            frames = frame_file.read(path)
            frame_file.check(frames, own.names, own.digests)
            frame_file.load(frames, own.names)
        except SolarError:  # of other weights, damaged, or earlier: as good as not there
            continue
        return frames
    return None


def by_hash(wanted: bytes) -> FramesFile | None:
    """The frames in the cache that a packet names."""
    found = next(_folder().glob(f"*-{wanted.hex()}.frames"), None)
    return None if found is None else frame_file.read(found)


def made(spec: str, watch: Watch = unwatched) -> FramesFile:
    """The frames of a base, measured now (some minutes for a model of 135M) and put in the cache.

    Raises SolarError where the base cannot be run here: an unknown architecture, no tokenizer.
    """
    from solar.evaluate import Weights
    from solar.moments import frames_of, load_small

    base = load_small(spec)
    own = frames_of(base, watch=watch)
    keep(own, Weights(base))
    return own


def finder(given: str | os.PathLike | None):
    """A function from a hash to frames or None: those in the file `given` first, then the cache's.
    Raises SolarError where `given` cannot be read."""
    own = None if given is None else frame_file.read(given)
    return lambda wanted: own if own is not None and own.hash == wanted else by_hash(wanted)


def for_base(
    given: str | os.PathLike | None,
    spec: str,
    weights: Mapping[str, np.ndarray],
    own: Base,
    watch: Watch = unwatched,
) -> FramesFile:
    """The frames to code the layers with that `own` identifies: those in the file `given`, those in
    the cache, or new ones. Raises SolarError where there are none and none can be made, and for an
    output head or an embedding, which frames never have."""
    outside = [name for name in own.names if not _in_a_block(name)]
    if outside:
        raise SolarError(
            f"{outside[0]} is in none of the base's blocks, whose projections are all that frames "
            "have; use --preset weights"
        )
    if given is not None:
        return frame_file.read(given)
    found = known(weights, own)
    if found is None:
        try:
            found = made(spec, watch)
        except SolarError as error:
            raise SolarError(
                f"{spec} has no frames here and none can be made ({error}); give --frames FILE or "
                "--preset weights"
            ) from None
    return found
