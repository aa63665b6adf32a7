"""Frames file: the directions in which a base's own activations live, and those in which its
outputs notice a layer.

Layers that read the same input (q, k and v; gate and up) share its frame. A frame of an input of
width n stands for its second moment A = E[x x^T], that of an output of width m for the second
moment G = E[g g^T] of the gradients that arrive there. Either way: k leading eigenvectors as int8
rows, each up to a scale that does not matter, and the eigenvalues in quarters of an octave;
whatever is not among the k directions has one mean eigenvalue. Both ends compute with exactly these
integers, so a frames file is named by a hash of them and not by what they were measured on.

The file is safetensors: `rows.I` int8 (k, n), `powers.I` int16 (k + 1,), `marks` uint8 (frames,
32) the SHA-256 of every frame, `layers` a JSON table of layer names, indices and weight digests as
bytes. The name is the hash of table and marks, and a frame is compared with its mark when it is
read. So an adapter of few layers has their frames read and hashed and not the whole file, and no
frame is ever used that the name does not vouch for.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from solar.errors import SolarError
from solar.files import write_whole

HASH = 16  # bytes of the hash that a packet names
OCTAVE = 4  # powers count quarters of an octave
MOST_POWER = 400  # quarters of an octave, either way
# What reading a file of other bytes than these raises.
WRONG = (
    SafetensorError, KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError,
    RecursionError,  # of JSON in JSON
)  # fmt: skip


class Frame(NamedTuple):
    """rows (k, n) int8: leading eigenvectors, not normalised; powers (k + 1,) int16: log2 of the
    eigenvalues in quarters, the last for everything outside the rows."""

    rows: np.ndarray
    powers: np.ndarray


class Stored(Sequence):
    """The frames of an open file, each read and compared with its mark when it is first asked for.

    Asking raises SolarError where the frame is not what its mark says, or no frame.
    """

    def __init__(self, path: str | os.PathLike, file: Any, marks: tuple[bytes, ...]):
        self.marks = marks
        self._path, self._file = path, file
        self._read: dict[int, Frame] = {}

    def __len__(self) -> int:
        return len(self.marks)

    def __getitem__(self, i: int) -> Frame:
        i = range(len(self))[i]
        if i not in self._read:
            try:
                frame = Frame(*(self._file.get_tensor(f"{part}.{i}") for part in Frame._fields))
                whole = _sound(frame) and _mark(frame) == self.marks[i]
            except WRONG:  # another type of numbers
                whole = False
            if not whole:
                raise SolarError(
                    f"frames {self._path} are damaged in number {i}; make them again with solar "
                    "frames"
                )
            self._read[i] = frame
        return self._read[i]


class FramesFile(NamedTuple):
    """frames: one per input and output, a tuple or those of a file (Stored); layers: indices of
    every layer's two, input first; digests: SHA-256 (32 bytes) of every layer's weight as
    container.py takes it; about: what the moments were measured on."""

    frames: Sequence[Frame]
    layers: dict[str, tuple[int, int]]
    digests: dict[str, bytes]
    about: dict[str, Any]

    @property
    def hash(self) -> bytes:
        """HASH bytes that name the content: SHA-256 of layers and digests, as JSON, followed by the
        marks of the frames."""
        return hashlib.sha256(_table(self, about=False) + b"".join(_marks(self))).digest()[:HASH]


def quantised(moment: np.ndarray, count: int) -> Frame:
    """The frame of a second moment (n, n) float64 with at most `count` rows.

    The moment is rounded before its eigenvectors are taken, so that two machines whose sums differ
    in the last digits get the same integers.
    """
    width = len(moment)
    count = min(count, width - 1)
    mean = float(np.trace(moment)) / width
    if not (np.isfinite(moment).all() and mean > 0):
        raise SolarError("the base's activations are not finite, or all zero: frames need others")
    step = mean * 2.0**-14
    values, vectors = np.linalg.eigh(np.round((moment + moment.T) / (2 * step)))
    values = np.maximum(values[::-1] * step, mean * 1e-6)
    return of_directions(vectors[:, ::-1], values, count)


def of_directions(vectors: np.ndarray, values: np.ndarray, count: int) -> Frame:
    """The frame of the first `count` of orthonormal columns `vectors` (n, n), `values` (n,) what
    stands for the eigenvalue of each, above 0. count is below n."""
    rows = vectors[:, :count].T
    rows = np.round(rows * (127 / np.abs(rows).max(axis=1, keepdims=True)))
    # The sign is free; the first largest entry is positive.
    first = np.argmax(np.abs(rows), axis=1)
    rows *= np.sign(rows[np.arange(count), first])[:, None]
    kept = np.append(values[:count], values[count:].mean())
    powers = np.round(OCTAVE * np.log2(kept)).astype(np.int16)
    return Frame(np.ascontiguousarray(rows, np.int8), powers)


def softened(own: Frame, power: float) -> Frame:
    """The frame with its eigenvalues to a power, their sum as it was: below 1 it says less sharply
    which directions matter."""
    logs = every_power(own) / OCTAVE
    lost = np.log2(np.sum(2.0**logs)) - np.log2(np.sum(2.0 ** (power * logs)))
    return own._replace(powers=np.round(power * own.powers + OCTAVE * lost).astype(np.int16))


def sharpness(own: Frame) -> float:
    """Octaves by which the mean of the eigenvalues is above their geometric mean. Of log-normal
    eigenvalues it goes with the square of the power that they are taken to."""
    logs = every_power(own) / OCTAVE
    return float(np.log2(np.mean(2.0**logs)) - np.mean(logs))


def every_power(frame: Frame) -> np.ndarray:
    """(n,) int64: the powers of all directions, those outside the rows each with the last."""
    count, width = frame.rows.shape
    return np.append(frame.powers[:-1], np.full(width - count, frame.powers[-1])).astype(np.int64)


def _mark(frame: Frame) -> bytes:
    """SHA-256 of a frame's shape and integers."""
    whole = hashlib.sha256(np.array(frame.rows.shape, "<u8").tobytes())
    whole.update(frame.rows.tobytes() + frame.powers.astype("<i2").tobytes())
    return whole.digest()


def _marks(own: FramesFile) -> tuple[bytes, ...]:
    frames = own.frames
    return frames.marks if isinstance(frames, Stored) else tuple(map(_mark, frames))


def _table(own: FramesFile, about: bool = True) -> bytes:
    layers = {k: [*own.layers[k], own.digests[k].hex()] for k in sorted(own.layers)}
    known = {"layers": layers} | ({"about": own.about} if about else {})
    return json.dumps(known, sort_keys=True, separators=(",", ":")).encode()


def write(path: str | os.PathLike, own: FramesFile) -> Path:
    """Writes a frames file whole or not at all."""
    from safetensors.numpy import save

    marks = np.frombuffer(b"".join(_marks(own)), np.uint8).reshape(len(own.frames), -1)
    tensors = {"layers": np.frombuffer(_table(own), np.uint8), "marks": marks}
    for i, frame in enumerate(own.frames):
        tensors |= {f"rows.{i}": frame.rows, f"powers.{i}": frame.powers}
    return write_whole(Path(path), save(tensors))


def read(path: str | os.PathLike) -> FramesFile:
    """A frames file, its frames left in it until they are asked for (Stored).

    Raises SolarError where there is none, or what is read here is damaged.
    """
    try:
        Path(path).open("rb").close()  # what is wrong with a path has a name here
        file = safe_open(path, framework="numpy")
        marks = file.get_tensor("marks")
        known = json.loads(file.get_tensor("layers").tobytes())
        layers = {str(k): (int(v[0]), int(v[1])) for k, v in known["layers"].items()}
        digests = {str(k): bytes.fromhex(v[2]) for k, v in known["layers"].items()}
        about, count = dict(known.get("about", {})), len(marks)
        # First, since marks that are no bytes long may claim to be any number.
        whole = marks.dtype == np.uint8 and marks.shape == (count, hashlib.sha256().digest_size)
        if whole:
            wanted = {f"{part}.{i}" for part in Frame._fields for i in range(count)}
            whole = wanted | {"layers", "marks"} == set(file.keys())
    except OSError as error:
        raise SolarError(f"cannot read frames {path}: {error.strerror}") from None
    except WRONG:
        raise SolarError(f"{path} is not a frames file; make one with solar frames") from None
    if not whole or not all(0 <= i < count for both in layers.values() for i in both):
        raise SolarError(f"frames {path} are damaged; make them again with solar frames")
    return FramesFile(Stored(path, file, tuple(m.tobytes() for m in marks)), layers, digests, about)


def load(own: FramesFile, names: Iterable[str]) -> None:
    """Reads the frames of these layers now. Raises SolarError where one is damaged."""
    for name in names:
        for index in own.layers[name]:
            own.frames[index]


def _sound(frame: Frame) -> bool:
    rows, powers = frame
    return (
        rows.ndim == 2
        and (rows.dtype, powers.dtype) == (np.int8, np.int16)
        and rows.shape[0] < rows.shape[1]
        and powers.shape == (rows.shape[0] + 1,)
        and bool(np.abs(rows).max(axis=1, initial=0).all())
        and bool((np.abs(powers) <= MOST_POWER).all())
    )


def check(own: FramesFile, names: tuple[str, ...], digests: tuple[bytes, ...]) -> None:
    """Raises SolarError where the frames lack a layer or were made of other weights."""
    for name, digest in zip(names, digests, strict=True):
        if name not in own.layers:
            raise SolarError(f"the frames have no layer {name}; make them of this base")
        if own.digests[name] != digest:
            raise SolarError(f"the frames are of another base: {name} has other weights there")


def frame_of(own: FramesFile, index: int, width: int) -> Frame:
    """A frame of something that has `width` entries. Raises SolarError where it has not."""
    frame = own.frames[index]
    if frame.rows.shape[1] != width:
        raise SolarError(f"frame {index} is {frame.rows.shape[1]} wide and not {width}")
    return frame


def profile(frame: Frame, slope: int) -> np.ndarray:
    """(n,) int: log2 in quarters of the share of a factor's energy that each direction of the frame
    is expected to hold, where it goes with the eigenvalue to the power of slope / 16."""
    raised = (2 * every_power(frame) * slope + 16) // 32  # rounded in integers
    top = int(raised.max())
    total = float(np.sum(2.0 ** ((raised - top) / OCTAVE)))
    return raised - top - round(OCTAVE * float(np.log2(total)))


Frames = Mapping[str, Frame]
