"""Weights & Biases or nothing, behind three functions: start, log, finish.

The result of a run is its `result.json`; W&B is a view of it and may fail without costing anything.
So every call here that fails says so in one line on stderr, once, and the run goes on untracked.
`wandb` is imported only when it is used.

Under a Hydra multirun all jobs share one process: call `finish` in a `finally`, and each job is a
run of its own. The step travels as a metric named `step`, not as W&B's own counter, because a
resumed offline run is a new W&B run that starts in the middle.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from solar.errors import SolarError
from solar.record import plain

MODES = ("offline", "online", "disabled")

# Above the bound by no more than rounding in the last digits of the record is not a violation.
_ROUNDING = 1e-6


@dataclasses.dataclass
class Run:
    """One W&B run; `live` is None where there is nothing to log to (disabled, failed, finished)."""

    live: Any = None


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
                ),
            )
            live.define_metric("step", hidden=True)
            live.define_metric("*", step_metric="step")
        except Exception as error:
            failures.append(_line(error))
            continue
        if failures:
            _warn(f"offline instead, because {failures[0]} (`wandb sync` sends the run later)")
        return Run(live)
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
) -> None:
    """Log the curve, the bound check, the summary and the packets, and close the run.

    Never raises because of wandb. `rows` are result rows: they become the table `curve` (a row a
    point), the line plot `score against bytes` with a line a codec, and the table `bound_check`;
    `bound_check/passed` and `bound_check/failed` count its rows. `files` travel as one artifact.
    `failed` marks the run as crashed. A second call does nothing.
    """
    if run is None or run.live is None:
        return
    live = run.live
    try:
        import wandb

        # A W&B table wants one type a column, and numbers of the same kind throughout.
        rows = [{k: _cell(v) for k, v in plain(row, "row").items()} for row in rows]
        if rows:
            curve = _table(wandb, rows, list(dict.fromkeys(k for row in rows for k in row)))
            live.log({"curve": curve})
            if {"bytes", "score", "codec"} <= set(curve.columns):
                plot = wandb.plot.line(
                    curve, "bytes", "score", stroke="codec", title="score against bytes"
                )
                live.log({"score against bytes": plot})
        checked = bound_check(rows)
        if checked:
            live.log({"bound_check": _table(wandb, checked, list(checked[0]))})
            held = sum(row["holds"] for row in checked)
            live.summary.update(
                {
                    "bound_check/passed": held,
                    "bound_check/failed": len(checked) - held,
                    "bound_check/result": "pass" if held == len(checked) else "fail",
                }
            )
        if summary:
            live.summary.update(plain(summary, "summary"))
        files = [Path(file) for file in files]
        if files:
            title = re.sub(r"[^A-Za-z0-9_.-]+", "-", live.name or live.id)[:100]
            artifact = wandb.Artifact(f"{title}-packets", type="packets")
            for file in files:
                artifact.add_file(str(file))
            live.log_artifact(artifact)
    except Exception as error:
        _warn(f"not everything was logged, because {_line(error)}")
    run.live = None
    try:
        live.finish(exit_code=1 if failed else 0)
    except Exception as error:
        _warn(f"the run was not closed, because {_line(error)}")


def bound_check(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For the rows that carry a bound: label, seed, measured error, bound, slack, does it hold."""
    checked = []
    for row in rows:
        error, bound = row.get("relative_error"), row.get("bound")
        if error is None or bound is None:
            continue
        checked.append(
            {
                "label": row.get("label"),
                "seed": row.get("seed"),
                "relative_error": error,
                "bound": bound,
                "slack": row.get("slack"),
                "holds": bool(error <= bound * (1 + _ROUNDING) + _ROUNDING),
            }
        )
    return checked


def _table(wandb: Any, rows: Sequence[Mapping[str, Any]], columns: list[str]) -> Any:
    data = [[row.get(column) for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


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
