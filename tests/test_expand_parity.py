"""Live: what PEFT wrote goes through a `.solar` file and back into PEFT with our logits."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from golden import cases  # noqa: E402
from golden.bases import base_of, logits  # noqa: E402
from test_models_parity import torch_logits  # noqa: E402
from test_peft_parity import (  # noqa: E402
    CASE,
    config_of,
    load_in_peft,
    trained,
)
from test_weights import write_folder  # noqa: E402

import solar  # noqa: E402
from benchmarks.torch_models import peft_model, torch_model  # noqa: E402
from solar.adapters import peft_io  # noqa: E402
from solar.codec import packet  # noqa: E402
from solar.codec.factors import canonical, relative_error  # noqa: E402

METHODS = ("alpha/r", "rslora", "alpha_pattern", "adalora", "vera", "loha")


def written_by_peft(base, method, folder):
    """A directory as PEFT leaves it after training, or with every factor drawn."""
    if method in ("adalora", "vera", "loha"):
        trained(base, method, folder)
        return
    model = peft_model(torch_model(base), config_of(base.family, method))
    free = {k: v for k, v in model.named_parameters() if v.requires_grad}
    with torch.no_grad():
        for key, value in cases.factors({k: tuple(v.shape) for k, v in free.items()}).items():
            free[key].copy_(torch.from_numpy(value))
    model.save_pretrained(folder)


@pytest.mark.parametrize("preset", ["compact", "weights", "paper"])
@pytest.mark.parametrize(
    ("family", "method"),
    [(f, m) for f in CASE for m in METHODS if (f, m) != ("gpt2", "loha")],  # PEFT has no such LoHa
)
def test_from_peft_through_a_file_into_peft(family, method, preset, tmp_path):
    base = base_of(CASE[family], seed=3)
    folder = write_folder(tmp_path / "base", CASE[family], dict(base.params))
    written_by_peft(base, method, tmp_path / "peft")
    before = peft_io.read(tmp_path / "peft", base)
    heads = sum(head.nbytes for head in before.heads.values())
    report = solar.compress(
        tmp_path / "peft", str(folder), tmp_path / "a.solar", preset=preset,
        budget_bytes=6000 + heads, head_dtype="float32",
    )  # fmt: skip
    assert (tmp_path / "a.solar").stat().st_size == report["bytes"]["total"] <= 6000 + heads
    solar.expand(tmp_path / "a.solar", str(folder), tmp_path / "out")
    after = peft_io.read(tmp_path / "out", base)
    # The directory holds what the packet decodes to: the error is the one that was reported.
    seen = relative_error(canonical(before.pairs), with_all(before, after))
    assert seen == pytest.approx(report["relative_error"], abs=1e-4)
    theirs = torch_logits(base, load_in_peft(base, tmp_path / "out"))
    ours = logits(base, after)
    gap = np.abs(theirs - ours).max() / np.abs(ours).max()
    print(f"{family} {method} {preset}: logits {gap:.1e}, relative error {seen:.3f}")
    assert gap <= 1e-4
    assert packet.inspect((tmp_path / "a.solar").read_bytes())["layers"] == len(before.pairs)


def with_all(before, after):
    """Factors of every layer of `before`; those that came back empty have rank 0."""
    found = canonical(after.pairs)
    for name, (b, a, _) in before.pairs.items():
        if name not in found:
            found |= canonical({name: (b[:, :0], a[:0], 1.0)})
    return {name: found[name] for name in sorted(found)}
