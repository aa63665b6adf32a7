"""Weights & Biases or nothing, behind three functions: start, log, finish.

The result of a run is its `result.json`; W&B is a view of it and may fail without costing anything.
So every call here that fails says so in one line on stderr, once, and the run goes on untracked.
`wandb` is imported only when it is used.

Under a Hydra multirun all jobs share one process: call `finish` in a `finally`, and each job is a
run of its own. The step travels as a metric named `step`, not as W&B's own counter, because a
resumed offline run is a new W&B run that starts in the middle.
"""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from solar.errors import SolarError
from solar.record import plain

MODES = ("offline", "online", "disabled")

_STAGING = "WANDB_DATA_DIR"
# Seconds that the end of an online run may wait for the network; what is then still to be sent
# stays on disk.
_PATIENCE = 300.0


@dataclasses.dataclass
class Run:
    """One W&B run; `live` is None where there is nothing to log to (disabled, failed, finished).
    `folder`: where its files lie."""

    live: Any = None
    folder: Path | None = None


def start(
    mode: str,
    project: str,
    name: str,
    config: Mapping[str, Any],
    folder: str | os.PathLike,
    group: str | None = None,
) -> Run:
    """Begin a run whose files lie under `folder`/wandb.

    `config` may be nested or OmegaConf's; it is logged as a plain dict. `online` without an account
    or a network becomes `offline` with one line of warning. Raises SolarError for a mode that is
    not one of `MODES`, and for nothing else.
    """
    if mode not in MODES:
        raise SolarError(f"tracking mode {mode!r} does not exist: choose one of {', '.join(MODES)}")
    if mode == "disabled":
        return Run()
    try:
        import wandb

        Path(folder).mkdir(parents=True, exist_ok=True)
        entries = plain(config, "config")
    except Exception as error:  # a broken wandb installation is wandb's business, not the run's
        return _without(f"not tracked, because {_line(error)}")
    failures = []
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            live = wandb.init(
                mode=attempt,
                project=project,
                name=name,
                group=group,
                config=entries,
                dir=str(folder),
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",  # the terminal belongs to the progress bar and the table
                    save_code=False,
                    disable_git=True,  # commit and dirty flag are in the record
                    x_disable_stats=True,
                    init_timeout=30.0,
                    login_timeout=30.0,
                    finish_timeout=_PATIENCE,
                    finish_timeout_raises=True,
                ),
            )
            live.define_metric("step", hidden=True)
            live.define_metric("*", step_metric="step")
        except Exception as error:
            failures.append(_line(error))
            continue
        if failures:
            _warn(f"offline instead, because {failures[0]} (`wandb sync` sends the run later)")
        return Run(live, Path(live.dir).resolve().parent)
    return _without(f"not tracked, because {failures[-1]}")


def log(run: Run | None, metrics: Mapping[str, Any], step: int) -> None:
    """Log scalar `metrics` (Python, NumPy or JAX) at `step`. Never raises because of wandb."""
    if run is None or run.live is None:
        return
    try:
        run.live.log({**{k: _number(v) for k, v in metrics.items()}, "step": int(step)})
    except Exception as error:
        _give_up(run, error)


def finish(
    run: Run | None,
    rows: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    files: Iterable[str | os.PathLike] = (),
    failed: bool = False,
    *,
    bounds: Sequence[Mapping[str, Any]] = (),
    adapter: str | os.PathLike | None = None,
) -> None:
    """Log the curve, the bound check, the summary and the artifacts, and close the run.

    Never raises because of wandb. `rows` are result rows: they become the table `curve` (a row a
    point) and the line plot `score against bytes` with a line a codec. `bounds` are rows with a
    bool `holds`, one a code and layer: the table `bound_check`; `bound_check/passed` and
    `bound_check/failed` count them. The folder `adapter` is an artifact that the run uses, `files`
    are one that it makes, so that the second descends from the first. `failed` marks the run as
    crashed. A second call does nothing.
    """
    if run is None or run.live is None:
        return
    live = run.live
    try:
        import wandb

        with _staged(run):
            rows = [_cells(row) for row in rows]
            if rows:
                curve = _table(wandb, rows)
                live.log({"curve": curve})
                if {"bytes", "score", "codec"} <= set(curve.columns):
                    plot = wandb.plot.line(
                        curve, "bytes", "score", stroke="codec", title="score against bytes"
                    )
                    live.log({"score against bytes": plot})
            if bounds:
                live.log({"bound_check": _table(wandb, [_cells(row) for row in bounds])})
                held = sum(bool(row["holds"]) for row in bounds)
                live.summary.update(
                    {
                        "bound_check/passed": held,
                        "bound_check/failed": len(bounds) - held,
                        "bound_check/result": "pass" if held == len(bounds) else "fail",
                    }
                )
            if summary:
                live.summary.update(plain(summary, "summary"))
            _log_artifacts(wandb, live, [Path(file).resolve() for file in files], adapter)
    except Exception as error:
        _warn(f"not everything was logged, because {_line(error)}")
    run.live = None
    try:
        live.finish(exit_code=1 if failed else 0)
    except Exception as error:
        _warn(f"not all was sent, because {_line(error)} (`wandb sync {run.folder}` sends it)")


@contextlib.contextmanager
def _staged(run: Run) -> Iterator[None]:
    """Puts what W&B copies for a later upload beside the run, where the user has not chosen a
    place, rather than into the home folder: the folder then holds all that `wandb sync` sends."""
    if _STAGING in os.environ or run.folder is None:
        yield
        return
    os.environ[_STAGING] = str(run.folder / "staging")
    try:
        yield
    finally:
        del os.environ[_STAGING]


def _log_artifacts(
    wandb: Any, live: Any, files: list[Path], adapter: str | os.PathLike | None
) -> None:
    used, about = None, {}
    if adapter is not None:
        used = wandb.Artifact(f"adapter-{_title(Path(adapter).resolve().name)}", type="adapter")
        for file in sorted(Path(adapter).resolve().iterdir()):  # add_dir would speak of it
            if file.is_file():
                used.add_file(str(file))
        # Which one it was stands in the packets too: versions and aliases exist online only.
        about = {"adapter": used.name, "adapter_digest": used.digest}
    if files:
        title = f"{_title(live.name or live.id)}-packets"
        made = wandb.Artifact(title, type="packets", metadata=about)
        for file in files:
            made.add_file(str(file), policy="immutable")  # read where it lies, not copied
        live.log_artifact(made)
    if used is not None:
        # What `use_artifact` does with a new artifact, less its demand for a server and its wait
        # for the upload: the request is written down, and carried out with the upload or the sync.
        live._log_artifact(used, is_user_created=True, use_after_commit=True)


def _title(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:100]


def _table(wandb: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    data = [[row.get(column) for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a W&B table wants it: one type a column, and numbers of the same kind throughout."""
    return {key: _cell(value) for key, value in plain(row, "row").items()}


def _cell(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if isinstance(value, float | str | bool | None) else str(value)


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _give_up(run: Run, error: Exception) -> None:
    """Stop logging after the first failure, which would else repeat itself at every step."""
    _warn(f"no longer tracked, because {_line(error)}")
    live, run.live = run.live, None
    try:
        live.finish(exit_code=1)
    except (
        Exception
    ):  # closing what is already broken: the line above has said what there is to say
        pass


def _without(why: str) -> Run:
    _warn(why)
    return Run()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _warn(message: str) -> None:
    print(f"W&B: {message}", file=sys.stderr)
