"""Bombs: short packets that ask for much, on a base of the shape of SmolLM2-135M.

    python -m tests.fuzz.bombs

Layer table, lengths, base hash and checksum of each are right, so that nothing but a limit stops
it. Each must be refused, or be read within the memory and time that campaign.py allows a mutant.
"""

import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from constriction import stream

from solar.codec import (
    activation,
    container,
    ecsq,
    energies,
    framed,
    packet,
    payload,
    profiled,
    solar,
)
from solar.codec.coefficients import Side, coded_sides, targets_of
from solar.codec.container import Packet
from solar.codec.frame_file import Frame, FramesFile
from solar.codec.rank_table import MOST
from solar.codec.recipe import BUDGET, ENTROPY, MAX_SIZE, Recipe, Setting

from .campaign import MOST_MB, MOST_SECONDS, measured
from .mutate import cut, join, sign
from .seeds import finder

LAYERS, DIRECTIONS = 30, 64
WARM_UP = "a coefficient for every side"  # what reading it loads and compiles is not counted
COARSE = 480  # step at which an entry of energy 255 is hardly sent
WARM_FRAMES = "activation: a component for every layer"  # the same
SHAPES = {"q_proj": (576, 576), "v_proj": (192, 576)}


class Drawn(Mapping):
    """Weights drawn when they are read, so that the base itself takes no memory."""

    def __init__(self):
        self.names = sorted(f"layers.{i:02}.{part}" for i in range(LAYERS) for part in SHAPES)

    def __getitem__(self, name: str) -> np.ndarray:
        rng = np.random.default_rng(self.names.index(name))
        return rng.random(SHAPES[name.rpartition(".")[2]], np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def frames(known: container.Base) -> FramesFile:
    """Frames with one input for each layer of q_proj and v_proj, and an output for each."""
    rng = np.random.default_rng(4)
    falling = -3 * np.arange(DIRECTIONS + 1, dtype=np.int16)
    widths = [576] * LAYERS + [outputs for outputs, _ in known.shapes]
    made = tuple(
        Frame(rng.integers(-127, 128, (DIRECTIONS, width)).astype(np.int8), falling)
        for width in widths
    )
    layers = {name: (int(name.split(".")[1]), LAYERS + i) for i, name in enumerate(known.names)}
    return FramesFile(made, layers, dict(zip(known.names, known.digests, strict=True)), {})


def bombs(known: container.Base, seen: FramesFile) -> dict[str, bytes]:
    """The packets by what they ask for."""
    layers = len(known.names)
    full = tuple(min(shape) for shape in known.shapes)
    first, ones = (full[0], *[0] * (layers - 1)), (1,) * layers

    def pack(ranks, setting: Setting, body: bytes) -> bytes:
        fixed = solar.pack_parameters(setting, 0, 0) + bytes(8)
        return container.pack(Packet("solar", fixed, known.hash, None, ranks, body, b""))

    def sent(ranks, setting: Setting, chosen: Callable[[Side], np.ndarray]) -> bytes:
        """A payload whose sides send the positions chosen(side)."""
        sides, parts = coded_sides(known.shapes, ranks), {}
        for side in sides:
            own = np.asarray(chosen(side))
            scales = np.full(targets_of(setting, side), 200, np.uint8)
            parts[side] = payload.Sent(own, np.zeros(len(own), np.uint8), scales)
        return pack(ranks, setting, payload.pack(setting, sides, parts, 0))

    def names(text: bytes) -> bytes:
        """65,535 layers whose names unpack to `text`."""
        parts = cut(container.pack(Packet("float", b"\0\0\0", known.hash, ("a",), (1,), b"", b"")))
        packed = zlib.compress(text, 9)
        fixed = (*parts.fixed[:5], 65535)
        return sign(join(parts._replace(fixed=fixed, names=packed), bytes(8)))

    cells = Setting(Recipe("orthogonal", MAX_SIZE), keep=BUDGET, dtype=ENTROPY)

    def coarse(ranks) -> bytes:
        """Every component at about the coarsest level, every coefficient zero."""
        own = ecsq.components(cells, coded_sides(known.shapes, ranks))
        own = own._replace(energies=np.ones(own.sizes.shape))
        price = 1e-6
        while (ecsq.choose(own, price * 1.1, 0) > 0).all():
            price *= 1.1
        price = float(np.float32(price))
        chosen = ecsq.choose(own, price, -ecsq.MAX_BOOST)
        tables = [[np.zeros(n) for n in sizes] for sizes in own.sizes]
        bytes_ = np.full(own.sizes.shape, 255)
        found = ecsq.quantise(own, tables, chosen)
        body = ecsq.pack(own, (price, -ecsq.MAX_BOOST, 0), bytes_, found)
        return pack(ranks, cells, body)

    def profiled_as(ranks, dials: tuple, energy: int, words: bytes = b"") -> bytes:
        """An activation packet whose components all have this energy, and no cells of their own."""
        coder = stream.queue.RangeEncoder()
        counts = np.array(ranks, np.int64)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        lengths = np.repeat(np.array(known.shapes), counts, axis=0)
        own = np.full(len(first), energy)
        _, shape = energies.shape(own, first, lengths)
        energies.write(coder, own, first, lengths, shape)
        body = profiled.HEAD.pack(*profiled.Dials(*dials)) + profiled.SHAPE.pack(*shape)
        return packed_as(ranks, body + coder.get_compressed().astype("<u4").tobytes() + words)

    def packed_as(ranks, body: bytes) -> bytes:
        fixed = activation.FIXED.pack(seen.hash, 0) + bytes(8)
        return container.pack(Packet("activation", fixed, known.hash, None, ranks, body, b""))

    def filled(ranks, power: int, step: int, share: float) -> bytes:
        """An activation packet in which every entry that is sent is about so many steps."""
        dials = profiled.Dials(power, step, 0, 0, 16, 16)
        own = framed.lines_of(known, ranks, seen, dials, np.full(sum(ranks), 255))
        value = share * 2.0 ** ((power + step - 255) / 8)
        body = profiled.pack(own._replace(values=np.full(len(own.profiles), value)), dials)
        return packed_as(ranks, body)

    def older_table(table: bytes) -> bytes:
        own = cut(pack(ones, Setting(Recipe("random", 64), keep=1), b""))
        fixed = (*own.fixed[:3], own.fixed[3] & ~container.DIFFER, *own.fixed[4:])
        return sign(join(own._replace(fixed=fixed, table=table), bytes(8)))

    def at_first(side: Side) -> np.ndarray:
        return np.zeros(1, np.int64)

    def one_each(side: Side) -> np.ndarray:
        """The first position of every component; in the first layer, all there are."""
        return np.arange(MAX_SIZE) if side.layer == 0 else at_first(side)

    random, most = Recipe("random", MAX_SIZE), MAX_SIZE
    # As many entries as there may be for a byte each of their components.
    silent = tuple(0 if i % 6 == 0 else rank for i, rank in enumerate(full))
    part = (*full[:10], *[0] * 50)
    many = Setting(random, keep=BUDGET, dtype="sign")
    everything = b"\xff" * (2 * sum(full[:4]))
    return {
        WARM_UP: sent(ones, Setting(Recipe("random", 64), keep=1), at_first),
        "names: 64 million line breaks": names(b"\n" * 2**26),
        "names: 64 million zeros": names(bytes(2**26)),
        "names: one of 60 MB": names("\U0010ffff".encode() * 2**24),
        "ranks: 65,535 layers of rank 16,383": container.pack(
            Packet("float", b"\0\0\0", known.hash, None, (MOST,) * 65535, b"", b"")
        ),
        "ranks: a table of 16 million in the older form": older_table(bytes([1, 2]) * 2**23),
        "full rank of every layer from a coefficient each": sent(
            full, Setting(random, "matrix", keep=1, dtype="sign"), at_first
        ),
        "matrix atoms drawn without repeats, full rank": sent(
            first, Setting(Recipe("singular", 64, 0, "sampled"), "matrix", keep=1), at_first
        ),
        "one position in 65,535 for 576 components": sent(
            first, Setting(random, keep=1, dtype="sign"), lambda s: np.arange(s.rank) * most
        ),
        "densities that say everything": pack((*full[:4], *[0] * (layers - 4)), many, everything),
        "65,535 atoms on one layer, one on others": sent(ones, many, one_each),
        "4,000 matrix atoms of full rank": sent(
            first,
            Setting(Recipe("random", 4000), "matrix", dtype="sign"),
            lambda s: np.arange(4000),
        ),
        "entropy, full ranks at the finest level": pack(
            full, cells, ecsq.HEAD.pack(0.0, 0, 0) + b"\xff" * sum(full) + bytes(4000)
        ),
        "entropy, a third of the layers in full": coarse((*full[:20], *[0] * 40)),
        WARM_FRAMES: profiled_as(ones, (0, 2**15 - 1, 0, 0, 16, 16), 99),
        "activation, ranks of which nothing is sent, as many as their bytes allow": profiled_as(
            silent, (0, 2**15 - 1, 0, 0, 16, 16), 0
        ),
        "activation, full ranks of which nothing is sent, and more bytes": profiled_as(
            full, (0, 2**15 - 1, 0, 0, 16, 16), 255, bytes(2000)
        ),
        "activation, full ranks at the finest step": profiled_as(
            full, (0, -(2**15), 0, 255, 255, 255), 255, bytes(4000)
        ),
        "activation, a sixth of the layers in full, every entry zero": filled(part, 0, COARSE, 0.0),
        "activation, a sixth of the layers in full, of the largest numbers": filled(
            part, activation.MAX_POWER, COARSE, 1e5
        ),
        "activation, a sixth of the layers in full, of many digits": filled(part, 0, 300, 1e5),
    }


def main() -> int:
    warnings.simplefilter("error", RuntimeWarning)
    base, broken = Drawn(), 0
    known = container.identify(base, base)
    seen = frames(known)

    def decode(data: bytes) -> packet.Decoded:
        return packet.decode(data, base, frames=finder(seen))

    for what, data in bombs(known, seen).items():
        if what in (WARM_UP, WARM_FRAMES):
            measured(lambda data=data: decode(data) and "")
        for read in (packet.inspect, decode):
            found = measured(lambda read=read, data=data: read(data) and "something")
            bad = found.kind == "fault" or found.seconds > MOST_SECONDS or found.megabytes > MOST_MB
            broken += bad
            if found.kind != "other" or read is not packet.inspect:
                break
        text = found.text.strip().splitlines()[-1]
        print(
            f"{'BROKEN ' if bad else ''}{what}: {len(data):,} bytes, {found.kind} in "
            f"{found.seconds:.2f} s and {found.megabytes:.0f} MB: {text}"
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
