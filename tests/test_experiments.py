"""Every file of configs/experiment: what it says of itself, that it composes, and that it runs end
to end with ``tiny=true`` on generated rows.
"""

import os
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from experiments import compare, plot
from experiments.program import CONFIGS
from paper_figures import rows
from solar import evaluator, record
from solar.packages import cache_dir

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
# The program that the first line of the file names runs these as one point of a sweep.
TABLES = [name for name in EXPERIMENTS if not name.startswith(("sweep_", "search_"))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working folder, whose evaluation process all experiments share, and a cache in which
    nothing is known but the programs that earlier sessions compiled."""
    folder, before = tmp_path_factory.mktemp("experiments"), Path.cwd()
    programs = cache_dir().resolve() / "xla"
    programs.mkdir(parents=True, exist_ok=True)
    (folder / "cache").mkdir()
    (folder / "cache" / "xla").symlink_to(programs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOLAR_CACHE", str(folder / "cache"))
        os.chdir(folder)
        yield folder
        evaluator.stop()
        os.chdir(before)


def node(name: str, *overrides: str) -> dict:
    """The composed config of an experiment, Hydra's own part under ``hydra``."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("compare", [f"experiment={name}", *overrides], return_hydra_config=True)
        swept = config.hydra.sweeper.params
        params = OmegaConf.to_container(swept) if swept else {}
        with_run = OmegaConf.masked_copy(config, [k for k in config if k != "hydra"])
        return OmegaConf.to_container(with_run, resolve=True) | {"hydra": params}


def test_an_experiment_that_is_not_there_is_refused():
    with pytest.raises(MissingConfigException, match="experiment/smollm2"):
        node("smollm2")


def test_experiments_that_texts_and_programs_name_are_there():
    home = CONFIGS.parent
    files = [home / "README.md", *home.glob("docs/*.md"), *home.glob("notebooks/*.ipynb")]
    files += [*home.glob("benchmarks/*.py"), *home.glob("experiments/*.py")]
    named = {
        (file.name, name)
        for file in files
        for name in re.findall(r"experiment=([a-z]\w*)", file.read_text())
    }
    assert len(named) > 20
    assert not {(file, name) for file, name in named if name not in EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_and_says_how_it_is_run(name):
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    config = node(name)
    assert config["name"] == name
    assert f"experiment={name}" in head, "the command stands at the top"
    assert re.search(r"seed=0,1,2|seed: 0,1,2", text) or name not in TABLES
    assert re.search(r"\d+ (minutes?|seconds|hours)|half a minute|Hardware|Optuna", head)
    if name in TABLES and "pip:" not in config["model"]["spec"]:
        if not config["model"]["spec"].startswith("made:"):
            assert "Published" in head and "Hardware" in head and "offline" in head.lower()


def test_adapters_are_measured_at_a_rate_that_validation_prefers():
    """Within two points, a standard error of the smallest validation split, of the best rate."""
    by_adapter: dict[str, dict[float, float]] = {}
    for row in rows.read(CONFIGS.parent / "paper_figures" / "data" / "lora_tuned.csv"):
        own = node(row["experiment"])
        if (row["steps"], row["rank"]) == (own["train"]["steps"], own["adapter"]["r"]):
            found = by_adapter.setdefault(row["experiment"], {})
            found[row["rate"]] = row["validation_score"]
    assert len(by_adapter) >= 6
    for name, found in by_adapter.items():
        assert len(found) > 1, name
        assert found[node(name)["train"]["learning_rate"]] >= max(found.values()) - 0.02, name


@pytest.mark.parametrize("name", TABLES)
def test_an_experiment_runs_tiny(name, home, monkeypatch):
    for_this = node(name)
    # The last value of whatever the experiment sweeps; codec=tiny for all but the grids themselves.
    last = [f"{key}={value(choices)[-1]}" for key, choices in for_this["hydra"].items()]
    arguments = [*last, "tiny=true", "tracking=disabled", "codec=tiny"]
    # Five seconds a figure; test_compare draws those of every family.
    monkeypatch.setattr(plot, "draw", lambda *given, **named: [])
    monkeypatch.setattr("sys.argv", ["compare", f"experiment={name}", *arguments])
    try:
        compare.program()
    except SystemExit as end:
        assert not end.code, f"exit status {end.code}"
    (result,) = (home / "outputs" / name).rglob("result.json")
    done = record.read(result)
    assert done["tiny"] and done["status"] == "complete"
    wanted = for_this["evaluate"]
    columns = [*(wanted.get("text") or {}).get("metrics", ())]
    columns += [f"also_{task}" for task in wanted.get("also") or {}]
    columns += ["kl"] if wanted.get("kl") else []
    for row in done["rows"]:
        assert all(isinstance(row[name], float) for name in ("score", "loss", *columns))
    if "kl" in columns:
        assert abs(done["rows"][0]["kl"]) < 1e-5, "the adapter itself"


def value(choices: str) -> list[str]:
    """The values of a sweep over commas that are not within brackets."""
    return re.findall(r"\[[^]]*\]|[^,]+", str(choices))
