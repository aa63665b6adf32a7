"""Budgets: the file is filled and never overfilled, and what it is filled with is worth most."""

import itertools
import re

import numpy as np
import pytest

from solar.api import setting_for
from solar.codec import baselines, budget, ecsq, limit, packet, trellis
from solar.codec.coefficients import Side
from solar.codec.encode import encode
from solar.codec.factors import Factors, canonical, relative_error
from solar.codec.fit import fit
from solar.codec.recipe import BUDGET, MAX_SIZE, Recipe, Setting
from solar.errors import SolarError

SHAPES = {f"{i:02d}.{k}": s for i in range(8) for k, s in (("q", (64, 48)), ("v", (32, 48)))}
COMPACT = Setting(Recipe("orthogonal", MAX_SIZE), keep=BUDGET, dtype="entropy")
PAPER = Setting(Recipe("singular", 64, 0.1))


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def update():
    rng = np.random.default_rng(1)
    return canonical({
        name: (rng.normal(size=(m, 4)) * [1, 0.3, 0.1, 0.03] * rng.lognormal(0, 1),
               rng.normal(size=(4, n)), 0.1)
        for name, (m, n) in SHAPES.items()
    })  # fmt: skip


def made(update, base, setting, size, **more):
    """The file, which decodes to what was measured and is no longer than it may be."""
    coded = encode(update, base, setting, budget_bytes=size, usual_names=base, **more)
    assert len(coded.data) <= size
    found = packet.decode(coded.data, base, usual_names=base)
    assert relative_error(coded.factors, found.factors) < 1e-6
    assert relative_error(update, found.factors) == pytest.approx(
        coded.report["relative_error"], abs=1e-6
    )
    return coded


@pytest.mark.parametrize("heads", [None, {"score.weight": np.ones((7, 11))}])
def test_compact_fills_every_budget(base, update, heads):
    used = len(heads["score.weight"].ravel()) * 2 + 30 if heads else 0
    errors = []
    for size in np.geomspace(300, 8000, 12).astype(int) + used:
        coded = made(update, base, COMPACT, int(size), heads=heads)
        assert len(coded.data) >= 0.97 * size
        errors.append(coded.report["relative_error"])
    assert (np.diff(errors) < 0.002).all() and errors[-1] < 0.05 * errors[0]


def test_the_preset_fills_budgets_that_have_no_room_for_every_layer():
    rng = np.random.default_rng(3)
    names = [f"{i:02d}.q" for i in range(40)]
    base = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in names}
    pairs = {n: (rng.normal(size=(64, 2)) * rng.lognormal(0, 1), rng.normal(size=(2, 64)), 0.1)
             for n in names}  # fmt: skip
    setting = setting_for("weights", 0, embed_basis=False)
    for size in (250, 400, 700):
        coded = made(canonical(pairs), base, setting, size)
        assert len(coded.data) >= 0.97 * size
        assert sum(f.left.shape[1] > 0 for f in coded.factors.values()) < len(names)


def test_what_is_worth_alike_keeps_its_order_on_any_machine():
    """Powers differ in their last bits between kinds of processors, and with them worths."""
    sides = [Side(i, s, 64, 2, 64) for i in range(50) for s in (0, 1)]
    own = ecsq.components(COMPACT, sides)
    energies = np.repeat(np.random.default_rng(5).lognormal(0, 2, len(own.pairs))[:, None], 2, 1)
    own = ecsq.weighed(own, energies, 255)
    noise = 1 + 2e-15 * np.random.default_rng(6).standard_normal(len(own.pairs))
    other = own._replace(weights=own.weights * noise)
    for boost in (-30, 17, 51, 130):
        chosen = ecsq.choose(own, 1e-3, boost)
        assert (chosen > 0).any() and (ecsq.choose(other, 1e-3, boost) == chosen).all()


@pytest.mark.parametrize("dtype", ["entropy", "float16", "int8", "sign", "auto"])
def test_the_least_budget_that_is_told_is_one_that_a_file_fits(base, update, dtype):
    setting = Setting(Recipe("orthogonal", MAX_SIZE), keep=BUDGET, dtype=dtype)
    with pytest.raises(SolarError, match="that sends nothing has") as told:
        made(update, base, setting, 1)
    least = int(re.search(r"nothing has (\d+)", str(told.value))[1])
    with pytest.raises(SolarError, match=f"nothing has {least}"):
        made(update, base, setting, least - 1)
    for more in range(6):
        made(update, base, setting, least + more)


@pytest.mark.parametrize("kind", ["orthogonal", "singular"])
def test_the_bits_of_the_sides_are_the_payload(base, update, kind):
    """Of square weights both sides share a byte of energy, of others each has its own."""
    setting = Setting(Recipe(kind, MAX_SIZE if kind == "orthogonal" else 32), keep=BUDGET,
                      dtype="entropy")  # fmt: skip
    report = made(update, base, setting, 2000).report
    spent = sum(sum(layer.get("bits", {}).values()) for layer in report["layers"]) / 8
    # Besides: the price and the dials, and the last word of the stream.
    assert 0 <= report["bytes"]["payload"] - ecsq.HEAD.size - spent < 10
    for layer in report["layers"]:
        assert set(layer.get("bits", {})) in (set(), {"left", "right"})


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("orthogonal", d) for d in ("float16", "int8", "int4", "int2", "sign", "auto")]
    + [("random", d) for d in ("float16", "int8")],
)
def test_fixed_numbers_fill_a_budget_until_all_are_sent(base, update, kind, dtype):
    setting = Setting(Recipe(kind, 40), keep=BUDGET, dtype=dtype)
    most = len(encode(update, base, setting, budget_bytes=10**6, usual_names=base).data)
    for size in (400, 1100, 2500):
        coded = made(update, base, setting, size)
        assert len(coded.data) >= 0.97 * min(size, most if dtype != "auto" else size)


def test_the_paper_form_is_alike_for_all_layers_and_fills_its_budget(base, update):
    for size in (700, 2222, 13000):
        coded = made(update, base, PAPER, size)
        assert len(coded.data) >= 0.97 * size
        setting = coded.report["setting"]
        assert setting["recipe"]["size"] >= (setting["keep"] or 1)
        assert setting["recipe"]["perturbation"] == np.float32(0.1)


@pytest.mark.parametrize(("rank", "tolerance"), [(1, 1e-5), (4, 2e-3)])
def test_what_a_choice_gains_is_what_the_error_loses(base, update, rank, tolerance):
    """Products of captured energies: exact for one component, nearly so for several."""
    update = {k: Factors(f.left[:, :rank], f.right[:, :rank]) for k, f in update.items()}
    setting = Setting(Recipe("orthogonal", MAX_SIZE), keep=BUDGET, dtype="float32")
    total = sum(np.sum((f.left @ f.right.T) ** 2) for f in update.values())
    for size in (600, 3000):
        coded = made(update, base, setting, size)
        gained = 0.0
        for own in coded.factors.values():
            gained += np.sum(np.sum(own.left**2, axis=0) * np.sum(own.right**2, axis=0))
        lost = total * coded.report["relative_error"] ** 2
        assert total - lost == pytest.approx(gained, rel=tolerance)


def test_every_component_takes_the_best_pair_at_its_price():
    rng = np.random.default_rng(2)
    own = ecsq.Components([], np.zeros(5, int), rng.integers(8, 90, (5, 2)),
                          rng.lognormal(0, 1, (5, 2)), rng.lognormal(0, 1, 5))  # fmt: skip
    table = ecsq.levels()
    for price in (1e-4, 3e-3, 0.05):
        chosen = ecsq.choose(own, price, 0)
        for row in range(5):
            worth = {
                (a, b): own.weights[row]
                * own.energies[row].prod()
                * table.share[a]
                * table.share[b]
                - price * (own.sizes[row] @ table.bits[[a, b]] + 8 * ((a, b) != (0, 0)))
                for a, b in itertools.product(range(len(table.bits)), repeat=2)
            }
            assert worth[tuple(chosen[row])] == pytest.approx(max(worth.values()), abs=1e-12)


def test_relative_errors_spread_over_layers(base, update):
    """Layers whose updates are small get their share where errors count relative to them."""
    worst = {}
    for relative in (0.0, 0.5, 1.0):
        setting = Setting(COMPACT.recipe, keep=BUDGET, dtype="entropy", relative=relative)
        coded = made(update, base, setting, 1500)
        assert len(coded.data) >= 0.97 * 1500
        parts = [x["measured"] / x["norm"] for x in coded.report["layers"]]
        worst[relative] = max(parts), coded.report["relative_error"], np.std(parts)
    assert worst[0.0][0] > worst[0.5][0] > worst[1.0][0] and worst[1.0][2] < 0.5 * worst[0.0][2]
    assert worst[0.0][1] < worst[0.5][1] < worst[1.0][1]


def test_layers_that_are_left_out_do_not_matter_to_the_receiver():
    """The largest update is a poor buy (many coefficients), so small files leave it out."""
    rng = np.random.default_rng(5)
    shapes = {"00.q": (400, 300), "00.v": (32, 48), "01.q": (64, 48), "01.v": (32, 48)}
    scales = dict(zip(shapes, (0.05, 0.1, 0.2, 0.3), strict=True))
    update = canonical({k: (rng.normal(size=(m, 2)), rng.normal(size=(2, n)), scales[k])
                        for k, (m, n) in shapes.items()})  # fmt: skip
    own = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    left_out = 0
    for relative in (0.0, 0.6, 1.0):
        setting = Setting(COMPACT.recipe, keep=BUDGET, dtype="entropy", relative=relative)
        for size in (150, 180, 230, 300):
            coded = made(update, own, setting, size)
            left_out += coded.factors["00.q"].left.shape[1] == 0
    assert left_out


def test_levels_are_the_hull_of_a_real_quantiser():
    table = ecsq.levels()
    slopes = np.diff(table.share) / np.diff(table.bits)
    assert (np.diff(slopes) < 0).all() and (np.diff(table.bits) > 0).all()
    drawn = np.random.default_rng(3).normal(size=100_000)
    for level in (4, 12, 25, 40):
        index = np.full(len(drawn), table.index[level])
        scale = trellis.deviation(index)
        cells, contexts = trellis.quantise(drawn * scale, index)
        bits = trellis.bits(cells, contexts, index).mean()
        assert bits == pytest.approx(table.bits[level], rel=0.02)
        error = np.mean((drawn - trellis.decoded(cells, contexts, index) / scale) ** 2)
        assert 1 - error == pytest.approx(table.share[level], rel=0.02, abs=2e-3)
        # Shannon's curve is below, and the trellis is within 0.6 dB of it, where the best scalar
        # quantiser is 1.5 away at high rates.
        assert error > 2 ** (-2 * bits) > 0.87 * error


def test_compact_beats_the_baselines_and_stays_near_the_limit(base, update):
    curve = limit.rate_distortion(update)
    for rank, bits in ((1, 1), (2, 1), (1, 2), (None, 4)):
        plain = baselines.encode(update, base, "bits", bits=bits, rank=rank, usual_names=base)
        coded = made(update, base, COMPACT, len(plain.data))
        assert coded.report["relative_error"] < 0.95 * plain.report["relative_error"]
        shannon = limit.bytes_at(curve, coded.report["relative_error"])
        assert shannon < coded.report["bytes"]["payload"] < 1.5 * shannon + 60


def test_numbers_by_size_take_the_largest_coefficients_first(base, update):
    setting = Setting(Recipe("orthogonal", MAX_SIZE), keep=BUDGET, dtype="float16")
    known = encode(update, base, setting, budget_bytes=2000)
    kept, total = 0, 0
    for name, own in known.factors.items():
        for side in (0, 1):
            kept += np.sum(own[side] ** 2)
            total += np.sum(update[name][side][:, : own[side].shape[1]] ** 2)
    numbers = known.report["bytes"]["payload"] / 2
    entries = sum(sum(shape) * 4 for shape in SHAPES.values())
    assert kept / total > 2 * numbers / entries


def test_cuts_count_real_bits():
    rng = np.random.default_rng(4)
    own = budget.Lines(
        [], np.zeros(3, int), np.full((3, 2), 64), np.zeros((3, 2, 64), int),
        -np.sort(-np.abs(rng.normal(size=(3, 2, 64))), axis=2), np.full((3, 2), 64.0), np.ones(3),
    )  # fmt: skip
    for dtype in budget.WIDTHS:
        cut = budget.cuts(own, dtype)
        assert (np.diff(cut.counts, axis=2) >= 0).all() and (cut.counts[..., -1] == 64).all()
        assert (cut.energy[..., -1] <= 64 * 1.6).all() and (cut.energy[..., 0] == 0).all()
        few = budget.search(own, cut, 300.0)
        many = budget.search(own, cut, 3000.0)
        assert few.sum() < many.sum()


def test_budgets_that_cannot_be_met_are_refused(base, update):
    with pytest.raises(SolarError, match="a budget of 40 bytes is too small"):
        encode(update, base, COMPACT, budget_bytes=40)
    with pytest.raises(SolarError, match="of them for its trained heads"):
        encode(update, base, COMPACT, budget_bytes=900, heads={"h": np.ones((30, 40))})
    with pytest.raises(SolarError, match="too small for one coefficient a component"):
        encode(update, base, PAPER, budget_bytes=200)
    with pytest.raises(SolarError, match="needs budget_bytes"):
        encode(update, base, COMPACT)
    with pytest.raises(SolarError, match="needs orthonormal atoms"):
        encode(update, base, Setting(Recipe("random", 20), keep=BUDGET, dtype="entropy"),
               budget_bytes=900)  # fmt: skip


def test_a_zero_update_and_a_budget_beyond_need(base):
    nothing = {k: Factors(np.zeros((m, 0), "f4"), np.zeros((n, 0), "f4"))
               for k, (m, n) in SHAPES.items()}  # fmt: skip
    assert len(encode(nothing, base, COMPACT, budget_bytes=500).data) < 300
    few = {"00.q": Factors(np.ones((64, 1), "f4"), np.ones((48, 1), "f4"))}
    coded = encode(few, base, COMPACT, budget_bytes=10**6)
    assert len(coded.data) < 400 and coded.report["relative_error"] < 2e-3


def test_the_fit_under_a_budget_has_every_coefficient(base, update):
    from solar.codec import container
    from solar.codec.coefficients import Frames, coded_sides, size_of

    known = container.identify(base, update)
    ordered = container.in_order(known, update)
    sides = coded_sides(known.shapes, [f.left.shape[1] for f in ordered])
    frames = Frames(base, known, sides, COMPACT.recipe, None)
    found, _, orthonormal = fit(COMPACT, sides, ordered, frames)
    assert orthonormal
    for side in sides:
        assert size_of(COMPACT, side) == side.dim
        own = found[side].values.reshape(side.rank, -1)
        true = np.linalg.norm(ordered[side.layer][side.side], axis=0)
        np.testing.assert_allclose(np.linalg.norm(own, axis=1), true, rtol=1e-5)
