"""The basis: singular vectors to the sign, every atom rebuilt on its own, golden values."""

import numpy as np
import pytest

from solar.codec import kinds, singular
from solar.codec.basis import atoms, sources
from solar.codec.container import identify
from solar.codec.kinds import Sides, positions
from solar.codec.recipe import Recipe
from solar.codec.singular import Frame
from solar.errors import SolarError

SEED = 2**40 + 5
GROUP = Sides(np.array([3, 70000], np.uint32), np.array([0, 1], np.uint32), 6, 1)
IDS = np.array([[0, 1, 511]] * 2, np.uint32)


def frame(rank, dim, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, rank)))
    return Frame(np.ascontiguousarray(q.T, np.float32), np.arange(rank, 0, -1.0))


def test_golden_atoms():
    found, norms = atoms(Recipe("random", 512, seed=SEED), GROUP, IDS, None)
    expected = [0.08537985, 0.11914494, -0.56909132, 0.74660599, 0.266482, 0.16191557]
    np.testing.assert_allclose(found[0, 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(norms[0, :, 0], [0.73631793, 1.04456627, 1.39686334], rtol=1e-6)
    ranks = np.array([6, 4])
    chosen = {
        (selection, width): positions(
            Recipe("singular", 512, 0.1, selection, 7), GROUP._replace(width=width), IDS, ranks
        ).tolist()
        for selection, width in (("sampled", 1), ("sampled", 3), ("leading", 3))
    }
    assert chosen["sampled", 1] == [[[5], [2], [2]], [[0], [1], [3]]]
    assert chosen["sampled", 3][0] == [[3, 4, 5], [0, 1, 3], [1, 2, 5]]
    assert chosen["leading", 3][0] == [[0, 1, 2], [1, 2, 3], [1, 3, 5]]


def test_perturbation_has_unit_norm_in_the_mean():
    group = Sides(np.arange(4, dtype=np.uint32), np.zeros(4, np.uint32), 200, 1)
    ids = np.tile(np.arange(50, dtype=np.uint32), (4, 1))
    _, norms = atoms(Recipe("random", 50), group, ids, None)
    assert np.mean(np.asarray(norms) ** 2) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("kind", ["singular", "random", "orthogonal"])
def test_an_atom_does_not_depend_on_its_company(kind, width):
    recipe = Recipe(kind, 40, 0.2, "sampled", seed=4)
    group = Sides(np.array([0, 5], np.uint32), np.array([1, 0], np.uint32), 12, width)
    frames = [frame(10, 12, 1), frame(12, 12, 2)] if kind == "singular" else None
    ids = np.tile(np.arange(40, dtype=np.uint32), (2, 1))
    together, _ = atoms(recipe, group, ids, sources(recipe, group, ids, frames))
    assert together.shape == (2, 40, width, 12)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), 1, rtol=1e-6)
    alone = group._replace(layers=group.layers[1:], sides=group.sides[1:])
    few = np.array([[33, 7]], np.uint32)
    found, _ = atoms(recipe, alone, few, sources(recipe, alone, few, frames and frames[1:]))
    np.testing.assert_array_equal(found[0], np.asarray(together)[1, [33, 7]])


def test_singular_atoms_are_the_vectors_plus_noise():
    recipe = Recipe("singular", 20, 0.05)
    group = Sides(np.array([2], np.uint32), np.array([0], np.uint32), 16, 1)
    ids = np.arange(20, dtype=np.uint32)[None]
    own = frame(8, 16)
    plain = sources(recipe, group, ids, [own])
    np.testing.assert_array_equal(plain[0, :, 0], own.rows[np.arange(20) % 8])
    found, _ = atoms(recipe, group, ids, plain)
    cosine = np.sum(np.asarray(found) * plain, axis=-1)
    assert (cosine > 0.98).all() and (cosine < 1).all()
    # Past the rank the vector repeats and its perturbation does not.
    assert np.linalg.norm(np.asarray(found)[0, 0, 0] - np.asarray(found)[0, 8, 0]) > 0.01


def test_sampled_vectors_are_a_permutation_and_differ_by_layer_and_side():
    recipe = Recipe("singular", 30, 0.0, "sampled", seed=1)
    group = Sides(np.array([0, 0, 1], np.uint32), np.array([0, 1, 0], np.uint32), 30, 1)
    index = positions(recipe, group, np.tile(np.arange(30), (3, 1)), np.full(3, 30))[:, :, 0]
    assert all(sorted(row) == list(range(30)) for row in index.tolist())
    assert len({tuple(row) for row in index.tolist()}) == 3


def test_matrix_atoms_draw_without_repeats_until_all_are_taken():
    group = Sides(np.array([0, 1], np.uint32), np.array([0, 0], np.uint32), 9, 4)
    ids = np.tile(np.arange(300, dtype=np.uint32), (2, 1))
    recipe = Recipe("singular", 300, 0.1, "sampled")
    index = positions(recipe, group, ids, np.array([7, 3]))
    assert all(len(set(row)) == 4 for row in index[0].tolist())
    assert all(sorted(row[:3]) == [0, 1, 2] for row in index[1].tolist())
    counts = np.bincount(index[0].ravel(), minlength=7)
    assert (abs(counts - 1200 / 7) < 50).all()


def test_leading_matrix_atoms_are_distinct():
    group = Sides(np.array([0], np.uint32), np.array([0], np.uint32), 12, 3)
    ids = np.arange(48)[None]
    index = positions(Recipe("singular", 48), group, ids, np.array([12]))[0]
    assert len({tuple(row) for row in index.tolist()}) == len(index)
    assert index[0].tolist() == [0, 1, 2]


def test_orthogonal_columns():
    recipe = Recipe("orthogonal", 40, seed=3)
    group = Sides(np.array([0, 1], np.uint32), np.array([0, 0], np.uint32), 15, 1)
    ids = np.tile(np.arange(40), (2, 1))
    rows = sources(recipe, group, ids, None)[:, :, 0].astype(np.float64)
    for start in (0, 15):  # every lap is an orthonormal basis of its own
        lap = rows[:, start : start + 15]
        np.testing.assert_allclose(lap @ lap.swapaxes(1, 2), [np.eye(15)] * 2, atol=1e-6)
    assert np.max(np.abs(rows[0, :15] @ rows[0, 15:30].T)) < 0.999
    assert np.max(np.abs(rows[0, :15] @ rows[1, :15].T)) < 0.999


def test_singular_vectors_cache_sign_and_gap(tmp_path):
    weight = np.random.default_rng(0).normal(size=(10, 14)).astype(np.float32)
    known = identify({"w": weight}, ["w"])
    call = ((10, 14), known.digests[0], tmp_path)
    left, right = singular.singular_frames("w", lambda: weight, *call)
    middle = (left.rows * left.values[:, None].astype(np.float32)).T
    signs = np.sign(np.sum((left.rows @ weight) * right.rows, axis=1))
    np.testing.assert_allclose((middle * signs) @ right.rows, weight, atol=1e-5)
    for rows in (left.rows, right.rows):
        assert (rows[np.arange(10), np.argmax(np.abs(rows), axis=1)] > 0).all()

    def never():
        raise AssertionError("the cache should have answered")

    again = singular.singular_frames("w", never, *call)
    for first, second in zip((left, right), again, strict=True):
        np.testing.assert_array_equal(first.rows, second.rows)
    for path in tmp_path.rglob("*.left.npy"):  # cut short, as by a full disk
        path.write_bytes(path.read_bytes()[:-40])
    healed, _ = singular.singular_frames("w", lambda: weight, *call)
    np.testing.assert_array_equal(healed.rows, left.rows)
    assert singular.smallest_gap(np.array([4.0, 3.0, 2.8, 0.1]), 2) == pytest.approx(0.05)


def test_rank_deficient_weights_use_their_own_rank():
    rng = np.random.default_rng(1)
    weight = (rng.normal(size=(12, 3)) @ rng.normal(size=(3, 9))).astype(np.float64)
    left, right = singular.singular_frames("w", lambda: weight, (12, 9), b"", None)
    assert left.rows.shape == (3, 12) and right.rows.shape == (3, 9)
    with pytest.raises(SolarError, match="base weight w is zero"):
        singular.singular_frames("w", lambda: 0 * weight, (12, 9), b"", None)
    with pytest.raises(SolarError, match="non-finite"):
        singular.singular_frames("w", lambda: weight * np.nan, (12, 9), b"", None)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "hadamard"}, {"size": 0}, {"size": 70000}, {"perturbation": -1.0}, {"seed": -1},
     {"perturbation": float("nan")}, {"selection": "best"}, {"seed": 2**64}],
)  # fmt: skip
def test_recipes_are_checked(wrong):
    with pytest.raises(SolarError):
        Recipe(**wrong)


def test_draws_without_repeats_take_what_is_left_in_rising_order():
    drawn = np.random.default_rng(4).integers(0, 2**32, (2, 5, 11), dtype=np.uint32)
    ranks = np.array([4, 11])
    found = kinds._without_repeats(drawn, ranks)
    for side, rank in enumerate(ranks):
        for words, chosen in zip(drawn[side], found[side], strict=True):
            left, expected = [], []
            for word in words.tolist():
                left = left or list(range(rank))
                expected.append(left.pop(word % len(left)))
            assert chosen.tolist() == expected


def test_cosines_are_orthonormal_where_they_are_built_in_pieces():
    rows = kinds.cosines(600).astype(np.float64)
    assert np.abs(rows @ rows.T - np.eye(600)).max() < 1e-6
