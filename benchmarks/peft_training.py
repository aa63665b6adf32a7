"""LoRA trained here against LoRA trained by PEFT in torch: same base, arrays, batches and hyper-
parameters.

    python -m benchmarks.peft_training --setting text --framework torch --seed 0 --out peft.csv
    python -m benchmarks.peft_training --report --out peft.csv

Each run appends one row (nothing is run that the file already has); --report compares the
frameworks' mean test scores. Both sides see the same base weights, training rows in the same order,
learning rate of every step, clipping and AdamW constants. What differs is what a user would not
control either: the draw of A (and of a fresh classifier) from the framework's own generator, and
the order of floating-point sums. The torch side needs requirements-parity.txt. A full text run is
about 5 minutes on 2 cores, one of vision (60 steps) 2.
"""

import argparse
import csv
import io
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
from omegaconf import OmegaConf

from experiments.finetune import Setup, adapter_config, finetune, prepare
from experiments.program import CONFIGS
from solar.adapters import peft_io
from solar.adapters.lora import LoraConfig
from solar.adapters.targets import DEFAULTS
from solar.compilation import cache_compilations
from solar.errors import SolarError
from solar.files import write_whole
from solar.record import versions
from solar.score import make_scorer
from solar.train import TrainConfig, learning_rate, parse, rows

FIELDS = ("setting", "framework", "seed", "steps", "test", "score", "loss", "seconds", "versions")
KEY = FIELDS[:5]


# What is trained is an experiment's adapter, so that it serves here and there, or a shorter run.
SETTINGS = {
    "text": ["experiment=smollm2_sentiment"],
    "vision": ["experiment=offline_vit", "train.steps=60"],
}


class Run(NamedTuple):
    """One training: the experiment's config, what it loads, and its settings as records."""

    config: dict[str, Any]
    setup: Setup
    lora: LoraConfig
    training: TrainConfig


def compose(setting: str, seed: int, steps: int | None, test: int | None) -> Run:
    """The run of a setting. The splits are the same for every seed; the seed draws the initial
    values and the order of the batches.
    """
    overrides = [*SETTINGS[setting], f"seed={seed}"]
    overrides += [f"train.steps={steps}"] if steps else []
    overrides += [f"task.test={test}"] if test else []
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("compare", overrides), resolve=True)
    setup = prepare(config)
    lora = adapter_config(config["adapter"])
    lora = replace(lora, target_modules=lora.target_modules or DEFAULTS[setup.base.family])
    return Run(config, setup, lora, parse(config["train"], seed))


def train_here(run: Run) -> dict[str, float]:
    """Score and loss on the test split of LoRA trained by ``solar.train`` (or found in the cache),
    and the seconds that this took.
    """
    start = time.perf_counter()
    folder = finetune(run.config, run.setup)
    seconds = time.perf_counter() - start
    found = peft_io.read(folder, run.setup.base)
    update = {name: (b * np.float32(scale), a.T) for name, (b, a, scale) in found.pairs.items()}
    ranks = {name: left.shape[1] for name, (left, _) in update.items()}
    scored = make_scorer(run.setup.base, run.setup.task, ranks)(update, found.heads)
    return {"score": scored["score"], "loss": scored["loss"], "seconds": seconds}


def train_in_torch(run: Run) -> dict[str, float]:
    """The same with PEFT's LoRA and torch's AdamW; the test split is scored in torch too."""
    import torch
    from torch.nn.functional import cross_entropy

    from benchmarks.torch_models import peft_model, torch_model

    base, task, config = run.setup.base, run.setup.task, run.training
    torch.set_num_threads(2)
    torch.manual_seed(config.seed)
    model = peft_model(torch_model(base, fresh_head=True), run.lora)
    weights = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(
        weights, betas=(0.9, config.beta2), eps=1e-8, weight_decay=config.weight_decay
    )
    rate = learning_rate(config)

    def measure(batch: Mapping[str, np.ndarray]):
        """Mean loss and number of correct answers of a batch, as ``solar.objective.measure``."""
        label = torch.from_numpy(batch["label"].astype(np.int64))
        if task.objective == "image_class":
            pixels = (batch["pixels"].astype(np.float32) / 255 - base.image_mean) / base.image_std
            nchw = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2).copy())
            logits = model(pixel_values=nchw).logits
            return cross_entropy(logits, label), (logits.argmax(-1) == label).sum()
        options = torch.from_numpy(np.asarray(task.label_tokens, np.int64))
        last = torch.from_numpy(batch["mask"].sum(1) - 1)
        causal = model.get_base_model()
        hidden = causal.model(
            input_ids=torch.from_numpy(batch["tokens"].astype(np.int64)),
            attention_mask=torch.from_numpy(batch["mask"].astype(np.int64)),
        ).last_hidden_state
        logits = causal.lm_head(hidden[torch.arange(len(last)), last])
        correct = (logits[:, options].argmax(-1) == label).sum()
        return cross_entropy(logits, options[label]), correct

    start = time.perf_counter()
    model.train()
    for step in range(config.steps):
        index = rows(step, config.batch_size, len(task.train["label"]), config.seed)
        loss, _ = measure({k: v[index] for k, v in task.train.items()})
        if not torch.isfinite(loss):
            raise SolarError(
                f"torch's loss of step {step + 1} is {loss.item()}; lower learning_rate"
            )
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.clip)
        for group in opt.param_groups:
            group["lr"] = float(rate(step))
        opt.step()
        print(
            f"\rtorch step {step + 1}/{config.steps} loss {loss.item():.3f} ",
            end="",
            file=sys.stderr,
        )
    print(file=sys.stderr)
    seconds = time.perf_counter() - start
    model.eval()
    count, total, correct = len(task.test["label"]), 0.0, 0
    with torch.no_grad():
        for first in range(0, count, 32):
            part = {k: v[first : first + 32] for k, v in task.test.items()}
            loss, right = measure(part)
            total += loss.item() * len(part["label"])
            correct += int(right)
    return {"score": correct / count, "loss": total / count, "seconds": seconds}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows written so far; raises SolarError where the file is another table."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise SolarError(
                f"{path} has other columns than {', '.join(FIELDS)}; choose another --out"
            )
        return list(reader)


def run(
    setting_name: str, framework: str, seed: int, out: Path, steps: int | None, test: int | None
):
    """Trains and scores once and adds the row, unless ``out`` has it. Returns the row or None."""
    cache_compilations()
    known, chosen = read_rows(out), compose(setting_name, seed, steps, test)
    tested = len(chosen.setup.task.test["label"])
    key = (setting_name, framework, str(seed), str(chosen.training.steps), str(tested))
    if any(tuple(row[k] for k in KEY) == key for row in known):
        print(f"{out} has {' '.join(key)} already")
        return None
    measured = train_here(chosen) if framework == "solar" else train_in_torch(chosen)
    row = dict(zip(KEY, key, strict=True))
    row["score"], row["loss"] = f"{measured['score']:.6f}", f"{measured['loss']:.6f}"
    row["seconds"], row["versions"] = f"{measured['seconds']:.1f}", used(framework)
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows([*known, row])
    write_whole(out, text.getvalue().encode())
    print(", ".join(f"{k} {v}" for k, v in row.items()))
    return row


def used(framework: str) -> str:
    """The versions of what computed a row."""
    found = versions()
    names = ["solar", "jax", "optax"]
    if framework == "torch":
        import peft
        import torch

        found |= {"torch": torch.__version__, "peft": peft.__version__}
        names = ["torch", "peft", "transformers"]
    return " ".join(f"{name}={found[name]}" for name in names)


def report(known: list[dict[str, str]]) -> str:
    """Per setting: mean and standard deviation of either framework, and whether the means agree.

    They agree where they differ by at most two standard deviations, pooled over the two frameworks.
    """
    lines = []
    groups = sorted({(r["setting"], r["steps"], r["test"]) for r in known})
    for group in groups:
        scores = {}
        for framework in ("solar", "torch"):
            rows_ = [r for r in known if (r["setting"], r["steps"], r["test"]) == group]
            rows_ = [r for r in rows_ if r["framework"] == framework]
            scores[framework] = [float(r["score"]) for r in rows_]
            if rows_:
                mean, spread = mean_and_spread(scores[framework])
                loss = statistics.fmean(float(r["loss"]) for r in rows_)
                seconds = statistics.fmean(float(r["seconds"]) for r in rows_)
                lines.append(
                    f"{group[0]} ({group[1]} steps, {group[2]} tested) {framework}: score "
                    f"{mean:.4f} +- {spread:.4f} over {len(rows_)} seeds, "
                    f"loss {loss:.4f}, {seconds:.0f} s"
                )
        if min(map(len, scores.values())) < 2:
            lines.append(f"{group[0]}: two seeds of each framework are needed to compare")
            continue
        (ours, spread), (theirs, other) = map(mean_and_spread, scores.values())
        pooled = ((spread**2 + other**2) / 2) ** 0.5
        verdict = "within" if abs(ours - theirs) <= 2 * pooled else "NOT within"
        lines.append(
            f"{group[0]}: means differ by {ours - theirs:+.4f}, {verdict} two pooled standard "
            f"deviations ({2 * pooled:.4f})"
        )
    return "\n".join(lines) or "no rows yet"


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setting", choices=SETTINGS, help="which base and task")
    parser.add_argument("--framework", choices=("solar", "torch"), help="who trains")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="CSV to which the row is added")
    parser.add_argument("--steps", type=int, help="fewer steps, to try the program")
    parser.add_argument("--test", type=int, help="fewer test examples, to try the program")
    parser.add_argument("--report", action="store_true", help="compare what the CSV holds and stop")
    given = parser.parse_args(arguments)
    if not given.report and not (given.setting and given.framework):
        parser.error("give --setting and --framework, or --report")
    try:
        if given.report:
            print(report(read_rows(given.out)))
        else:
            run(given.setting, given.framework, given.seed, given.out, given.steps, given.test)
    except SolarError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
