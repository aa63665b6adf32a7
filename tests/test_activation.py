"""The activation method: the metric, profiled quantisation, and packets of it."""

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from solar import moments
from solar.codec import activation, allot, choose, container, frame_file, metric, packet, profiled
from solar.codec.container import PacketError
from solar.codec.encode import encode
from solar.codec.factors import Factors, canonical, relative_error
from solar.codec.frame_file import FramesFile
from solar.codec.recipe import BUDGET, ENTROPY, Recipe, Setting
from solar.errors import SolarError
from solar.models.structure import assemble, structure
from solar.objective import cross_entropy, project
from solar.weights.base import load

NAMES = tuple(f"layers.{i}.{kind}" for i in range(4) for kind in "qv")
OUTPUTS, INPUTS, RANK = 48, 96, 3


def many(count: int) -> profiled.Lines:
    """As many components of two entries each, all of the same energy."""
    return profiled.Lines(
        np.full(count, 255), np.arange(count), np.ones((count, 2), int),
        np.zeros(2 * count, int), draw(0).standard_normal(2 * count),
    )  # fmt: skip


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def moment(seed: int, width: int = INPUTS) -> np.ndarray:
    """A second moment whose spectrum falls steeply, as activations' do."""
    turned, _ = np.linalg.qr(draw(seed).standard_normal((width, width)))
    values = 1.0 / (1 + np.arange(width)) ** 1.5
    return turned * values @ turned.T


def outputs(index: int) -> np.ndarray:
    """The second moment of the gradients at the output of a layer."""
    return 1e-6 * (1 + index) * moment(20 + index, OUTPUTS)


@pytest.fixture(scope="module")
def base():
    return {name: draw(i).standard_normal((OUTPUTS, INPUTS)).astype(np.float32)
            for i, name in enumerate(NAMES)}  # fmt: skip


@pytest.fixture(scope="module")
def frames(base):
    known = container.identify(base, NAMES)
    made = [frame_file.quantised(moment(i), 32) for i in range(4)]
    made += [frame_file.quantised(outputs(i), 16) for i in range(len(NAMES))]
    layers = {name: (i // 2, 4 + i) for i, name in enumerate(NAMES)}
    digests = dict(zip(known.names, known.digests, strict=True))
    return FramesFile(tuple(made), layers, digests, {"text": "none"})


def update(seed: int = 5) -> dict[str, Factors]:
    drawn, pairs = draw(seed), {}
    for name in NAMES:
        b, a = drawn.standard_normal((OUTPUTS, RANK)), drawn.standard_normal((RANK, INPUTS))
        pairs[name] = (b * 2.0 ** -np.arange(RANK), a, 0.1)
    return canonical(pairs)


def seen_error(original, decoded) -> float:
    """Mean over layers of the relative squared error that the outputs notice, by the true
    moments."""
    shares = []
    for i, name in enumerate(NAMES):
        before = original[name].left.astype(np.float64) @ original[name].right.T
        error = before - decoded[name].left.astype(np.float64) @ decoded[name].right.T
        into, out = moment(i // 2), outputs(i)
        sizes = [np.sum(out @ x @ into * x) for x in (error, before)]
        shares.append(sizes[0] / sizes[1])
    return float(np.mean(shares))


# ------------------------------------------------------------------------------------- metric


def test_the_metric_is_the_norm_that_the_moment_gives(frames):
    own, frame = moment(1), frames.frames[1]
    turn = metric.reflections(frame)
    columns = draw(9).standard_normal((INPUTS, 5))
    inside = metric.into(turn, columns)
    assert np.allclose(metric.out_of(turn, inside), columns, atol=1e-10)
    expected = np.einsum("ij,ik,kj->j", columns, own, columns)
    assert np.allclose(np.sum(inside**2, axis=0), expected, rtol=0.15)


def test_seen_factors_are_the_same_update(frames):
    into, out = (metric.reflections(frames.frames[i]) for i in (0, 4))
    own = update()[NAMES[0]]
    seen = metric.seen(own, into, out)
    product = metric.out_of(out, seen.left) @ metric.out_of(into, seen.right).T
    assert np.allclose(product, own.left.astype(np.float64) @ own.right.T, atol=1e-7)
    for side in (seen.left, seen.right):
        assert np.allclose(side.T @ side, np.diag(seen.sizes), atol=1e-9 * seen.sizes[0])


# ------------------------------------------------------------------------------------- numbers


def lines(seed: int, count: int = 12, steep: float = 1.2) -> tuple[profiled.Lines, np.ndarray]:
    """Gaussian components that follow their profile, and their deviations by entry."""
    drawn = draw(seed)
    shares = (1.0 + np.arange(INPUTS)) ** -steep
    right = np.round(4 * np.log2(shares / shares.sum())).astype(np.int64)
    left = np.full(OUTPUTS, -round(4 * float(np.log2(OUTPUTS))))
    profiles = np.tile(np.concatenate([left, right]), count)
    energies = drawn.integers(200, 215, count)
    lengths = np.tile([OUTPUTS, INPUTS], (count, 1))
    deviation = 2.0 ** ((np.repeat(energies, OUTPUTS + INPUTS) + profiles) / 8) * 2.0 ** (-215 / 8)
    values = deviation * drawn.standard_normal(len(profiles))
    own = profiled.Lines(energies, np.arange(count), lengths, profiles, values)
    return own, deviation


def test_budgets_are_filled_where_values_lie_in_heaps():
    """As those of an adapter do that was trained through the quantiser: a component that is a
    quarter finer then sends many more of them at once."""
    own, deviation = lines(3, steep=0.0)
    deviation = deviation * 2.0 ** ((208 - np.repeat(own.energies, OUTPUTS + INPUTS)) / 8)
    high, low = draw(1).random(len(deviation)) < 0.06, draw(2).standard_normal(len(deviation))
    values = deviation * (np.where(high, 3.5 * np.sign(own.values), 0) + 1e-3 * low)
    own = own._replace(values=values, energies=np.full_like(own.energies, 208))

    def size(sent: np.ndarray, bits: float) -> int:
        return profiled.length(int(sent.sum()), bits)

    prices = []
    for budget in range(300, 1000, 50):
        given = profiled.Dials(-215, 0, 0, 64, 16, 0)
        dials, sent, price, found = allot.fill(own, given, size, budget)
        body = profiled.pack(profiled.only(own, sent), dials, price=price)
        # What was found on the way is what is sent.
        assert found is not None
        assert body == profiled.pack(profiled.only(own, sent), dials, price=price, found=found)
        assert 0.97 * budget <= len(body) <= budget, budget
        prices.append(price)
    assert min(prices) < 1


def test_trials_are_the_same_by_threads(monkeypatch):
    own, _ = lines(3, steep=1.0)
    dials = profiled.Dials(-215, -20, 0, 64, 16, 0)
    monkeypatch.setattr(allot.os, "cpu_count", lambda: 3)
    alone = allot.attempt(own, dials)
    monkeypatch.setattr(allot, "TOGETHER", 1)
    pools = []
    monkeypatch.setattr(
        allot, "ThreadPoolExecutor", lambda n: pools.append(n) or ThreadPoolExecutor(n)
    )
    found = allot.attempt(own, dials)
    assert pools == [3] and alone.bits.sum() > 0
    for one, other in zip(alone, found, strict=True):
        assert (one == other).all()


def test_a_file_that_is_too_long_by_more_than_a_word_gets_wider_cells(base, frames, monkeypatch):
    """Where fewer bits a number need wider cells, a dearer bit alone would never do."""
    plan = choose.plan

    def far_too_fine(*given, **more):
        found = plan(*given, **more)
        finer = found.dials._replace(step=found.dials.step - 12)
        return found._replace(dials=finer, quantised=None)

    monkeypatch.setattr(choose, "plan", far_too_fine)
    coded = activation.encode(update(), base, frames, budget_bytes=2500)
    assert 0.9 * 2500 <= len(coded.data) <= 2500


@pytest.mark.parametrize("step", [180, 150, 100, 0])
def test_cells_come_back_as_they_were_tried(step):
    own, _ = lines(step)
    dials = profiled.Dials(-215, step, 5, 255, 16, 0)
    data = profiled.pack(own, dials)
    found = profiled.quantise(own, dials)
    head = profiled.read_head(data, len(own.energies), 1)
    assert head.dials == dials
    layers = [profiled.Layer(1, (OUTPUTS, INPUTS), np.stack([profile, profile]))
              for profile in own.profiles.reshape(len(own.energies), -1)]  # fmt: skip
    decoded = np.concatenate([*profiled.unpack(head, layers)], axis=1)[0]
    assert (decoded == found.decoded).all()
    length = profiled.length(len(own.energies), found.bits + profiled.energy_bits(own))
    assert abs(len(data) - length) <= 8 + 0.01 * length


def test_the_rate_is_near_reverse_water_filling():
    """Gaussian entries of known variances at one step: bits against sum 1/2 log2(variance / D)."""
    own, deviation = lines(3, count=40)
    for step, most in ((330, 1.03), (370, 1.06), (390, 1.18)):
        dials = profiled.Dials(-215, step, 0, 0, 16, 0)
        tried = profiled.quantise(own, dials)
        error = float(np.sum((tried.decoded - own.values) ** 2))
        low, high = 0.0, float((deviation**2).max())
        for _ in range(100):
            level = (low + high) / 2
            inside = np.minimum(deviation**2, level).sum() < error
            low, high = (level, high) if inside else (low, level)
        limit = 0.5 * np.log2(np.maximum(deviation**2 / level, 1)).sum()

        assert limit < 1.02 * tried.bits < 1.02 * most * limit, step


# ------------------------------------------------------------------------------------- packets


def code(base, frames, budget, factors=None, **options):
    return activation.encode(factors or update(), base, frames, budget_bytes=budget, **options)


def find(frames):
    return lambda wanted: frames if wanted == frames.hash else None


@pytest.mark.parametrize("budget", [200, 400, 1000, 3000, 4500])
def test_a_budget_is_filled_and_what_arrives_is_what_was_measured(base, frames, budget):
    coded = code(base, frames, budget)
    assert 0.97 * budget <= len(coded.data) <= budget
    decoded = packet.decode(coded.data, base, frames=find(frames))
    original = update()
    for name in NAMES:
        assert (decoded.factors[name].left == coded.factors[name].left).all()
        assert (decoded.factors[name].right == coded.factors[name].right).all()
    assert relative_error(original, decoded.factors) == pytest.approx(
        coded.report["relative_error"], rel=1e-4
    )
    assert coded.report["relative_error"] <= coded.report["bound"]
    found = coded.report["output_error"] ** 2
    assert seen_error(original, decoded.factors) == pytest.approx(found, rel=0.3, abs=1e-3)
    assert packet.inspect(coded.data)["frames"] == frames.hash.hex()


def test_a_file_is_near_the_limit_of_its_metric(base, frames):
    for budget, most in ((600, 1.35), (1200, 1.25), (3000, 1.15)):
        report = code(base, frames, budget).report
        assert 0.85 < report["bytes"]["payload"] / report["limit_bytes"] < most, budget
        assert report["bytes"]["payload"] < report["spectrum_limit_bytes"], budget


def test_more_bytes_err_less_and_less_than_the_code_of_weights(base, frames):
    setting = Setting(Recipe("orthogonal", 65535), keep=BUDGET, dtype=ENTROPY, relative=1.0)
    before = np.inf
    for budget in (300, 600, 1200, 2400):
        error = seen_error(update(), code(base, frames, budget).factors)
        plain = encode(update(), base, setting, budget_bytes=budget)
        assert error < before and error < 0.8 * seen_error(update(), plain.factors)
        before = error


def test_the_same_update_in_another_gauge_is_the_same_file(base, frames):
    drawn, turned = draw(11), {}
    for name, own in update().items():
        gauge = drawn.standard_normal((RANK, RANK)) + 2 * np.eye(RANK)
        left, right = own.left.astype(np.float64), own.right.T.astype(np.float64)
        turned[name] = (left @ gauge, np.linalg.solve(gauge, right), 1.0)
    one, other = code(base, frames, 3000), code(base, frames, 3000, canonical(turned))
    assert relative_error(one.factors, other.factors) < 1e-4


def test_zero_updates_and_small_budgets(base, frames):
    nothing = {k: Factors(f.left[:, :0], f.right[:, :0]) for k, f in update().items()}
    coded = code(base, frames, 500, nothing)
    assert len(coded.data) < 144
    decoded = packet.decode(coded.data, base, frames=find(frames))
    assert all(f.left.shape[1] == 0 for f in decoded.factors.values())
    some = update() | {NAMES[0]: nothing[NAMES[0]]}
    decoded = packet.decode(code(base, frames, 1500, some).data, base, frames=find(frames))
    assert decoded.factors[NAMES[0]].left.shape[1] == 0
    with pytest.raises(SolarError, match="too small"):
        code(base, frames, 60)


def test_what_does_not_fit_is_refused_by_name(base, frames):
    data = code(base, frames, 1500).data
    with pytest.raises(PacketError, match="needs the frames"):
        packet.decode(data, base)
    changed = frames.frames[0]._replace(powers=frames.frames[0].powers + 1)
    other = frames._replace(frames=(changed, *frames.frames[1:]))
    with pytest.raises(PacketError, match="needs the frames"):
        packet.decode(data, base, frames=lambda _: other)
    moved = dict(base) | {NAMES[2]: base[NAMES[2]] + 1e-3}
    with pytest.raises(PacketError, match="another base"):
        packet.decode(data, moved, frames=find(frames))
    with pytest.raises(SolarError, match="of another base"):
        code(moved, frames, 1500)
    lacking = frames._replace(layers={k: v for k, v in frames.layers.items() if k != NAMES[0]})
    with pytest.raises(SolarError, match="no layer"):
        code(base, lacking, 1500)


def test_altered_packets_never_decode_to_something_else(base, frames):
    """Every part altered, signed again or not: refused, or the same update."""
    coded = code(base, frames, 700)
    data, drawn = coded.data, draw(1)
    refused = 0
    for i in range(600):
        body = bytearray(data[:-8])
        place = int(drawn.integers(4, len(body)))
        body[place] ^= 1 << int(drawn.integers(8))
        if i % 3 == 0:
            body = body[: int(drawn.integers(50, len(body)))]
        signed = bytes(body) + container.hashlib.sha256(body).digest()[:8] if i % 2 else bytes(body)
        try:
            decoded = packet.decode(signed, base, frames=find(frames)).factors
        except PacketError:
            refused += 1
            continue
        assert relative_error(coded.factors, decoded) < 1e-6
    assert refused > 550


# ------------------------------------------------------------------------------------- a base


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_frames_of_a_base_cover_every_projection(family):
    base = load(f"tiny:{family}")
    own = moments.frames_of(base)
    inputs = {into for into, _ in own.layers.values()}
    assert len(inputs) < len(own.layers) or family == "gpt2"
    assert len(own.frames) == len(inputs) + len(own.layers)
    for name, both in own.layers.items():
        shape = base.params[name + ".weight"].shape
        widths = shape if family == "gpt2" else shape[::-1]
        assert tuple(own.frames[i].rows.shape[1] for i in both) == widths
    again = moments.frames_of(dataclasses.replace(base))
    assert again.hash == own.hash


def test_a_base_whose_gradients_keep_to_few_directions_has_softened_frames(monkeypatch):
    base = load("tiny:gpt2")
    monkeypatch.setattr(moments, "SHARPNESS", 50.0)
    plain = moments.frames_of(base)
    outputs = [plain.frames[out] for _, out in plain.layers.values()]
    found = [frame_file.sharpness(own) for own in outputs]
    assert "power" not in plain.about and moments.softening(outputs) == 1
    monkeypatch.setattr(moments, "SHARPNESS", np.median(found) / 4)  # half the power
    soft = moments.frames_of(base)
    assert soft.about["power"] == 0.5
    for own, frame in zip(plain.frames, soft.frames, strict=True):
        assert (frame.rows == own.rows).all()
        assert (frame.powers == frame_file.softened(own, 0.5).powers).all()
    left = [frame_file.sharpness(soft.frames[out]) for _, out in soft.layers.values()]
    assert np.median(left) == pytest.approx(moments.SHARPNESS, rel=0.5)
    flat = [own._replace(powers=np.zeros_like(own.powers)) for own in outputs]
    assert moments.softening(flat) == 1


def test_moments_of_outputs_are_those_of_the_gradients_of_the_loss():
    """Of passages of two tokens only the first predicts, so the gradient of the bias is that of
    the output."""
    base = load("tiny:gpt2")
    drawn = draw(7).integers(0, base.config.vocab_size, (6, 1, 2)).astype(np.int32)
    batches = [{"tokens": tokens, "mask": np.ones((1, 2), bool)} for tokens in drawn]
    found, layers = moments._sum(base, batches, 0, container.unwatched)
    name, shape = "transformer.h.0.attn.c_attn", structure(base.config)

    def loss(bias, tokens):
        model = assemble(shape, {**leaves, f"{name}.bias": bias})
        hidden, _ = model(tokens, np.ones((1, 2), bool))
        return cross_entropy(project(hidden[:, 0], model.head()), tokens[:, 1]).sum()

    leaves = {k: jax.numpy.asarray(v) for k, v in base.params.items()}
    gradient = jax.jit(jax.grad(loss))
    each = np.stack([gradient(leaves[f"{name}.bias"], tokens) for tokens in drawn])
    np.testing.assert_allclose(found[layers[name][1]], each.T @ each / 12, atol=1e-6)


def test_another_process_with_other_threads_makes_the_same_frames(tmp_path):
    """The file is a promise: float64 sums are rounded before anything is taken from them."""
    program = "import solar, sys; print(solar.frames('tiny:llama', sys.argv[1])['hash'])"
    found = set()
    for i, threads in enumerate(("1", "2")):
        more = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads,
                "JAX_DEFAULT_MATMUL_PRECISION": ("bfloat16", "float32")[i],
                "SOLAR_CACHE": str(tmp_path / threads)}  # fmt: skip
        flags = "--xla_cpu_multi_thread_eigen=false" if i else ""
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / f"{i}.frames")],
            env=os.environ | more | {"XLA_FLAGS": flags},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.add(done.stdout.strip())
    assert len(found) == 1


def test_more_components_than_the_boost_can_count():
    own, dials = many(70_000), profiled.Dials(-255, 450, 0, 0, 16, 16)
    sent = np.ones(len(own.energies), bool)

    def size(chosen, bits):
        return profiled.length(int(chosen.sum()), bits)

    found = [profiled.quantise(own, dials._replace(step=step)) for step in (450, 449)]
    coarse, fine = (size(sent, f.bits + profiled.energy_bits(own)) for f in found)
    budget = fine - (fine - coarse) // 60  # nearly all a quarter finer
    filled = allot._finest(own, sent, dials, size, budget)
    assert filled.dials.boost == profiled.MOST_BOOST
    assert (
        len(profiled.pack(own, filled.dials, price=filled.price, found=filled.quantised)) <= budget
    )
    for _ in range(2):
        dials = allot.coarser(own, dials)
        assert 0 <= dials.boost <= profiled.MOST_BOOST
