"""What a record says beside scores, on matrices made for it."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import reported
from solar.codec import bound
from solar.codec.encode import encode
from solar.codec.factors import Factors
from solar.codec.recipe import Recipe, Setting


def test_the_size_in_float16_is_that_of_the_file_in_float16(tmp_path):
    tensors = {"a": np.ones((3, 5), np.float32), "b": np.zeros(7, np.float32)}
    for kind, name in ((np.float32, "adapter_model"), (np.float16, "half")):
        halves = {key: tensor.astype(kind) for key, tensor in tensors.items()}
        save_file(halves, tmp_path / f"{name}.safetensors", {"format": "pt"})
    found = reported.sizes(tmp_path)
    assert found["bytes"] == (tmp_path / "adapter_model.safetensors").stat().st_size
    assert found["bytes_fp16"] == (tmp_path / "half.safetensors").stat().st_size
    row = {"codec": "bits", "bytes": 40}
    assert reported.ratios(row, found) == {
        "ratio_fp32": found["bytes"] / 40,
        "ratio_fp16": found["bytes_fp16"] / 40,
    }
    assert set(reported.ratios({"codec": "none", "bytes": 40}, found).values()) == {None}


@pytest.fixture
def layers():
    """Weights of two layers; the update of one lies in its leading singular vectors, and is twice
    the other, which lies in the last ones."""
    random = np.random.default_rng(0)
    base, factors = {}, {}
    for name, place, scale in (("inside", slice(0, 2), 2.0), ("outside", slice(-2, None), 1.0)):
        base[name] = random.normal(size=(24, 16)).astype(np.float32)
        u, _, vt = np.linalg.svd(base[name], full_matrices=False)
        pair = [np.ascontiguousarray(x, np.float32) for x in (u[:, place], vt[place].T)]
        factors[name] = Factors(*(np.float32(scale) * x for x in pair))
    return base, factors


def test_alignment_of_all_layers_weighs_them_by_their_energy(layers):
    base, factors = layers
    found = reported.aligned(factors, base, [4, 16], None, seed=0)
    shares = {(share["N"], share["side"]): share for share in found}
    for side in ("left", "right"):
        assert shares[4, side]["singular"] == pytest.approx(0.8, abs=1e-4)  # 4 of 4 + 1
        assert shares[16, side]["singular"] == pytest.approx(1, abs=1e-4)
    assert shares[4, "left"]["expected"] == pytest.approx(4 / 24)
    assert shares[4, "left"]["random"] < 0.5
    assert reported.aligned(factors, base, [], None, seed=0) == []


def test_bounds_by_layer_are_the_encodings_own(layers):
    base, factors = layers
    report = encode(factors, base, Setting(Recipe("singular", 4, 0.1))).report
    row = {"label": "own", "seed": 3, "layers": reported.by_layer(report)}
    bounds = reported.bounds_of([row, {"label": "LoRA"}])
    assert "layers" not in row and bounds["layers"] == ["inside", "outside"]
    (code,) = bounds["codes"]
    for i, layer in enumerate(report["layers"]):
        for figure in ("norm", "measured", "certificate", "slack", "tail_bound"):
            assert code[figure][i] == pytest.approx(layer[figure], rel=1e-6)
        for side in ("left", "right"):
            assert code["tail"][side]["bound"][i] == pytest.approx(
                layer["tail"][side]["bound"], rel=1e-6
            )
    rows = reported.bound_rows({"bounds": bounds, "rows": [row]})
    assert [r["layer"] for r in rows] == ["all", "inside", "outside"]
    assert all(r["holds"] and r["seed"] == 3 for r in rows)
    assert rows[0]["certificate"] / rows[0]["norm"] == pytest.approx(report["bound"], rel=1e-6)
    # A bound that does not hold is said to: the check is no constant.
    code["measured"][1] = 1.001 * code["certificate"][1]
    rows = reported.bound_rows({"bounds": bounds, "rows": [row]})
    assert [r["holds"] for r in rows] == [True, True, False]


def test_where_no_bound_is_known_before_encoding_none_is_reported(layers):
    base, factors = layers
    exact = bound.summary(bound.check(factors, factors))
    found = reported.by_layer(exact)
    assert "tail" not in found and "tail_bound" not in found
    assert found["measured"] == [0, 0] and found["slack"] == [0, 0]
