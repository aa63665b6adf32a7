"""Fill: settings, counts or levels whose file has the bytes it may have, and hardly less."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from solar.codec import budget, container, ecsq, payload, quantize, solar, supports, trellis
from solar.codec.coefficients import Coefficients, Side, coded_sides, size_of
from solar.codec.factors import Factors
from solar.codec.fit import fit, refit
from solar.codec.quantize import INTEGERS
from solar.codec.recipe import AUTO, MAX_KEEP, MAX_SIZE, Setting
from solar.codec.settle import Coded, Job, receive, settle
from solar.codec.tail import Tail
from solar.errors import SolarError

ROUNDS = 4  # of filling a budget again after layers were left out
POOL = 4  # N over K that a uniform setting aims at under a budget
SPARE = 0.01  # of a budget, that is not worth spending on sides that are sent already
MEASURED = 2  # times that the bits of a file of dtype entropy are measured
UNUSED = 0.01  # share of a budget that a uniform setting may leave over for the sake of POOL


def spread(
    job: Job, setting: Setting, sides: list[Side], budget_bytes: int
) -> tuple[Setting, Coded, dict[Side, Tail]]:
    """Coefficients spread over everything until the file has `budget_bytes`."""
    fitted, tails, orthonormal = fit(setting, sides, job.factors, job.frames)
    full = {(side.layer, side.side): fitted[side].values for side in sides}
    energies = {}
    for side in sides:
        own = np.sum(job.factors[side.layer][side.side].astype(np.float64) ** 2, axis=0)
        energies[side] = own if setting.atoms == "vector" else own.sum(keepdims=True)
    lines = budget.lines(setting, sides, fitted, energies)
    if setting.dtype == AUTO:
        spare = 8 * (budget_bytes - _least(job, budget_bytes) - len(job.factors))
        setting = replace(setting, dtype=budget.best_dtype(lines, max(spare, 0)))
    cuts = budget.cuts(lines, setting.dtype)
    left_out: list[str] = []
    for _ in range(ROUNDS):
        counts = _counts(job, setting, lines, cuts, budget_bytes)
        chosen, ranks = _trimmed(setting, budget.positions(lines, counts), len(job.factors))
        if orthonormal:
            kept = {s: Coefficients(p, full[s.layer, s.side][p]) for s, p in chosen.items()}
        else:
            short = [Factors(f.left[:, :r], f.right[:, :r])
                     for f, r in zip(job.factors, ranks, strict=True)]  # fmt: skip
            kept = refit(setting, coded_sides(job.known.shapes, ranks), short, job.frames, chosen)
        coded = settle(job, setting, ranks, kept, orthonormal)
        if not coded.left_out:
            break
        # What those layers had goes to the others.
        left_out += coded.left_out
        dead = {i for i, name in enumerate(job.known.names) if name in left_out}
        alive = [float(pair[0].layer not in dead) for pair in lines.sides]
        lines = lines._replace(gains=np.array(alive))
    return setting, coded._replace(left_out=left_out), tails


def _least(job: Job, budget_bytes: int, empty: int = payload.LENGTH) -> int:
    """Bytes of a file that sends nothing but heads, whose payload has `empty`. Raises SolarError
    where the budget is less."""
    least = job.overhead((0,) * len(job.factors)) + len(job.heads) + empty
    container.check_budget(budget_bytes, least, len(job.heads))
    return least


def _counts(
    job: Job, setting: Setting, lines: budget.Lines, cuts: budget.Cuts, budget_bytes: int
) -> np.ndarray:
    """Counts (c, 2) of coefficients whose file has at most `budget_bytes`, and hardly less."""
    spare = 8.0 * (budget_bytes - _least(job, budget_bytes))

    def length(counts: np.ndarray) -> int:
        chosen, ranks = _trimmed(setting, budget.positions(lines, counts), len(job.factors))
        sides = coded_sides(job.known.shapes, ranks)
        own = payload.length(setting, sides, chosen)
        return job.overhead(ranks) + own + len(job.heads)

    counts = np.zeros(lines.sizes.shape, np.int64)
    bits = spare
    while bits > 0:
        found = budget.search(lines, cuts, bits)
        if (over := length(found) - budget_bytes) <= 0:
            counts = found
            break
        # The model leaves out tables, and vectors that travel: they are most of a file then.
        bits = min(bits - 8 * over, 0.9 * bits) if setting.embed else bits - 8 * over - 16
    more = budget.extras(lines, counts)
    low, high = 0, len(more)
    guess = max(1, int((budget_bytes - length(counts)) * 8 / budget.WIDTHS[setting.dtype] / 4))
    while low < high:
        middle = min(guess, high) if guess else (low + high + 1) // 2
        if length(budget.with_extras(counts, more, middle)) <= budget_bytes:
            low, guess = middle, guess * 2
        else:
            high, guess = middle - 1, 0
    return budget.with_extras(counts, more, low)


def _trimmed(
    setting: Setting, chosen: Mapping[Side, np.ndarray], layers: int
) -> tuple[dict[Side, np.ndarray], tuple[int, ...]]:
    """Positions by the sides that are coded, and ranks: a layer ends with its last component that
    sends anything."""
    ranks = [0] * layers
    for side, own in chosen.items():
        if len(own):
            last = side.rank
            if setting.atoms == "vector":
                last = int(own[-1]) // size_of(setting, side) + 1
            ranks[side.layer] = max(ranks[side.layer], last)
    return {
        side._replace(rank=ranks[side.layer]): own
        for side, own in chosen.items()
        if ranks[side.layer]
    }, tuple(ranks)


def uniform(job: Job, setting: Setting, sides: list[Side], budget_bytes: int) -> Setting:
    """The setting with the N and K, alike for all layers, that fill `budget_bytes`.

    Many pairs do: a larger pool costs bits in the support, so N makes up for the coarse steps of K.
    Of those that leave little over, the one is taken whose pool is nearest to POOL times K, or to
    the vectors that the base has where these are fewer.
    """
    ranks = tuple(f.left.shape[1] for f in job.factors)
    targets = np.array([1 if setting.atoms == "matrix" else s.rank for s in sides], np.int64)
    entries = [side.dim * (1 if setting.atoms == "vector" else side.rank) for side in sides]
    # Sides with as many targets of the same length are counted once.
    alike = np.array([targets, entries], np.int64).reshape(2, -1).T
    alike, times = np.unique(alike, axis=0, return_counts=True)
    least = _least(job, budget_bytes)
    fixed = job.overhead(ranks) + len(job.heads) + payload.LENGTH + 2 * supports.WORD.itemsize
    fixed += int(targets.sum()) if setting.dtype in INTEGERS else 0

    def length(size, keep):
        bits = targets.sum() * keep * float(budget.WIDTHS[setting.dtype])
        for (t, e), n in zip(alike.tolist(), times.tolist(), strict=True):
            bits = bits + n * supports.bits(keep * t, size * t)
            if setting.embed:  # at most; targets that share atoms leave some of it over
                bits = bits + n * 16 * e * np.minimum(size, keep * t)
        return fixed + bits / 8

    keeps = np.arange(1, MAX_KEEP + 1)
    keeps = keeps[length(keeps, keeps) <= budget_bytes] if len(sides) else keeps[:0]
    if not len(keeps):
        raise SolarError(
            f"a budget of {budget_bytes} bytes is too small for one coefficient a component; give "
            f"{int(np.ceil(length(1.0, 1.0)))} or more" if len(sides)
            else f"the update is zero: its file has {least} bytes whatever the budget"
        )  # fmt: skip
    low, high = keeps.copy(), np.full(len(keeps), MAX_SIZE)
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = length(middle, keeps) <= budget_bytes
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    unused = 1 - length(low, keeps) / budget_bytes
    good = unused <= max(UNUSED, float(unused.min()))
    vectors = min(side.vectors for side in sides)
    wanted = np.maximum(np.minimum(POOL * keeps, vectors), keeps)
    far = np.where(good, np.abs(np.log(low / wanted)), np.inf)
    best = int(np.argmin(far))
    recipe = replace(setting.recipe, size=int(low[best]))
    return replace(setting, recipe=recipe, keep=int(keeps[best]))


def entropy(
    job: Job, setting: Setting, sides: list[Side], budget_bytes: int
) -> tuple[Coded, dict[Side, Tail]]:
    """Every side of every component at the level that it is worth, until the file is full.

    Raises SolarError where the atoms are not orthonormal: the price would not know what an error
    in a coefficient costs.
    """
    fitted, tails, orthonormal = fit(setting, sides, job.factors, job.frames)
    if not orthonormal:
        raise SolarError(
            "dtype entropy needs orthonormal atoms: vector atoms of kind orthogonal, or singular "
            "without perturbation and with N up to the rank; choose another dtype or basis"
        )
    _least(job, budget_bytes, ecsq.length(0, 0.0))
    own = ecsq.components(setting, sides)
    tables, energies = [], np.zeros(own.sizes.shape)
    for row, (pair, target) in enumerate(zip(own.pairs, own.targets, strict=True)):
        lines = []
        for i, side in enumerate(pair):
            size = own.sizes[row, i]
            lines.append(fitted[side].values[target * size : (target + 1) * size])
            energies[row, i] = float(np.sum(lines[i].astype(np.float64) ** 2))
        tables.append(lines)
    together = ecsq.whole(own)
    energies[together] = np.sqrt(energies[together].prod(axis=1))[:, None]
    power = quantize.scale_power(float(np.max(energies, initial=0)))
    bytes_ = quantize.scale_bytes(energies, power)
    relative = round(255 * setting.relative)
    own = ecsq.weighed(own, quantize.scale_steps(bytes_, power), relative)

    layers = np.array([pair[0].layer for pair in own.pairs], np.int64)

    def cut(chosen: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
        """Ranks, and the components that are in the file: a layer ends with its last active one."""
        ranks = np.zeros(len(job.factors), np.int64)
        np.maximum.at(ranks, layers, np.where((chosen > 0).any(axis=1), own.targets + 1, 0))
        return tuple(ranks.tolist()), own.targets < ranks[layers]

    def inside(mask: np.ndarray) -> tuple[ecsq.Components, list]:
        rows = np.flatnonzero(mask)
        part = ecsq.Components(
            [own.pairs[r] for r in rows],
            own.targets[rows],
            own.sizes[rows],
            own.energies[rows],
            own.weights[rows],
        )
        return part, [tables[r] for r in rows]

    share = 1.0

    def length(chosen: np.ndarray) -> int:
        ranks, mask = cut(chosen)
        energies = int((2 - together)[mask].sum())
        body = ecsq.length(energies, share * float(ecsq.expected(own, chosen)[mask].sum()))
        return job.overhead(ranks) + len(job.heads) + body

    def made(price: float, boost: int) -> tuple:
        """What a file with these dials has: levels, ranks, components and their coefficients."""
        chosen = ecsq.choose(own, price, boost)
        ranks, mask = cut(chosen)
        return chosen[mask], ranks, mask, *inside(mask)

    def written(bit: float) -> tuple[ecsq.Quantised, bytes, int]:
        """Cells, payload and bytes above the budget of what was made last, at a price of a bit."""
        found = ecsq.quantise(part, lines, chosen, bit)
        body = ecsq.pack(part, (price, boost, relative), bytes_[mask], found)
        return found, body, job.overhead(ranks) + len(job.heads) + len(body) - budget_bytes

    for _ in range(MEASURED):  # what the trellis needs beside what Gaussian coefficients would
        price, boost = ecsq.fill(own, length, budget_bytes)
        chosen, _, _, part, lines = made(price, boost)
        found = ecsq.quantise(part, lines, chosen)
        share = float(found.bits.sum()) / max(float(ecsq.expected(part, chosen).sum()), 1.0)
    while True:
        chosen, ranks, mask, part, lines = made(price, boost)
        found, body, over = written(1.0)
        if over <= 0:
            break
        boost -= max(1, over // 16)
        if chosen.max(initial=0) <= 1 or boost < -ecsq.MAX_BOOST:  # all at its lowest: less of it
            price, boost = float(np.float32(price * 1.05)), 0
    # Where the next component needs more than is left, those that are sent get it.
    bit = trellis.lowest_price(lambda bit: written(bit)[2], -over, SPARE * budget_bytes)
    if bit < 1:
        found, body, _ = written(bit)
    kept = coded_sides(job.known.shapes, ranks)
    # The sender reads its own file, so what is measured is what arrives.
    if setting.embed:  # what is embedded is not known yet
        sent = ecsq.unpack(setting, kept, power, body)
    else:
        sent, _ = solar.read_payload(setting, kept, power, body)
    packed, decoded, marks, measured = receive(job, setting, kept, sent)
    spent = ecsq.by_side(part, found.bits)
    body += packed
    coded = Coded(ranks, kept, body, power, decoded, marks, measured, [], spent, not setting.embed)
    return coded, tails
