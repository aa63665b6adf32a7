"""The one training loop: any method of adaptation, any task, resumable to the bit.

The batch of a step, its dropout keys and its learning rate are functions of the step number and the
seed alone, and the optimiser's state is in the checkpoint, so a run that was stopped goes on as if
it had not been.
"""

import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from solar.adapters.method import Method
from solar.errors import SolarError
from solar.models.structure import assemble, structure
from solar.objective import aim_of, measure
from solar.record import identity
from solar.tasks.task import Task
from solar.weights.base import Base


@dataclass(frozen=True)
class TrainConfig:
    """``steps`` updates of ``batch_size`` examples (in ``accumulate`` micro-batches), AdamW.

    ``schedule`` after ``warmup`` (a fraction of the steps): 'linear' or 'cosine' to zero, or
    'constant'. ``clip`` bounds the global gradient norm, 0 turns it off. A checkpoint every
    ``checkpoint_every`` steps.
    """

    steps: int = 250
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: str = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.0
    beta2: float = 0.999
    clip: float = 1.0
    checkpoint_every: int = 50
    seed: int = 0


class Trained(NamedTuple):
    """The end of a run: trained and frozen arrays, and the loss of every step (nats, float)."""

    trainable: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    losses: list[float]


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Warm-up in equal steps from the first on, then the configured decay; raises SolarError for an
    unknown schedule."""
    warm = round(config.warmup * config.steps)
    rest = max(config.steps - warm, 1)
    decays = {
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "constant": optax.constant_schedule(config.learning_rate),
    }
    if config.schedule not in decays:
        raise SolarError(f"schedule {config.schedule!r} is unknown; use {', '.join(decays)}")
    rise = optax.linear_schedule(
        config.learning_rate / max(warm, 1), config.learning_rate, max(warm - 1, 1)
    )
    return optax.join_schedules([rise, decays[config.schedule]], [warm])


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    adam = optax.adamw(learning_rate(config), b2=config.beta2, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), adam) if config.clip else adam


def rows(step: int, size: int, count: int, seed: int) -> np.ndarray:
    """Indices of the examples of one step: epochs are seeded permutations, laid end to end."""
    first = step * size
    wanted = np.arange(first, first + size)
    parts = []
    for epoch in range(first // count, wanted[-1] // count + 1):
        order = np.random.default_rng((seed, epoch)).permutation(count)
        parts.append(order[wanted[wanted // count == epoch] % count])
    return np.concatenate(parts)


def make_step(base: Base, method: Method, method_config: Any, task: Task, config: TrainConfig):
    """The jitted update ``(params, state, batch, step) -> (state, loss, gradient norm)``."""
    ranks, dropout = method.hooks(base, method_config)
    shape = structure(base.config, ranks, dropout)
    keyed = [name for name in shape.leaves if name.endswith(".lora_key")]
    aim, opt = aim_of(task, base), optimizer(config)

    def total(trainable, frozen, params, batch, key):
        keys = jax.random.key_data(jax.random.split(key, max(len(keyed), 1)))
        drops = {name: keys[i] for i, name in enumerate(keyed)}
        model = assemble(shape, {**params, **method.update(trainable, frozen), **drops})
        outcome = measure(model, aim, batch, batch.get("reference"))
        loss = outcome.divergence if "reference" in batch else outcome.loss
        return loss, outcome.count

    def update(params, state, batch, step):
        trainable, frozen, opt_state = state
        base_key = jax.random.fold_in(jax.random.key(config.seed, impl="threefry2x32"), step)
        keys = jax.random.split(base_key, config.accumulate)
        micro = jax.tree.map(lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), batch)

        def add(carry, part):
            (loss, count), grads = jax.value_and_grad(total, has_aux=True)(
                trainable, frozen, params, *part
            )
            return jax.tree.map(jnp.add, carry, (grads, loss, count)), None

        zero = (jax.tree.map(jnp.zeros_like, trainable), jnp.zeros(()), jnp.zeros(()))
        if config.accumulate == 1:  # no scan: XLA fuses a straight program better
            (grads, loss, count), _ = add(zero, (jax.tree.map(lambda x: x[0], micro), keys[0]))
        else:
            (grads, loss, count), _ = jax.lax.scan(add, zero, (micro, keys))
        count = jnp.maximum(count, 1.0)
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = opt.update(grads, opt_state, trainable)
        state = (optax.apply_updates(trainable, updates), frozen, opt_state)
        return state, loss / count, optax.tree.norm(grads)

    return jax.jit(update, donate_argnums=1), opt


def train(
    base: Base,
    method: Method,
    method_config: Any,
    task: Task,
    config: TrainConfig,
    folder: str | Path | None = None,
    log: Callable[[int, dict[str, float]], None] | None = None,
    resources: str = "",
) -> Trained:
    """Trains ``method`` on ``task``; with ``folder`` it checkpoints there and resumes what it
    finds.

    Rows of the task's training split that hold a ``reference``, what solar.objective.predict gave
    with other weights, are learnt from that and not from their labels. Raises SolarError for an
    empty training set, a folder that holds another run, and a loss that is
    not finite (named with its step). KeyboardInterrupt leaves a checkpoint of the last whole step.
    """
    count = len(next(iter(task.train.values()))) if task.train else 0
    if count == 0:
        raise SolarError(
            f"task {task.name} has no training examples; check its source and split sizes"
        )
    if config.batch_size % config.accumulate:
        raise SolarError(
            f"batch_size {config.batch_size} is no multiple of accumulate {config.accumulate}"
        )
    update, opt = make_step(base, method, method_config, task, config)
    trainable, frozen = method.init(
        jax.random.key(config.seed, impl="threefry2x32"), base, method_config
    )
    state = (trainable, frozen, opt.init(trainable))
    own = {
        "config": asdict(config),
        "method": [method.name, asdict(method_config) if method_config else None],
        "task": task.identity,
        "base": base.source,
        "resources": resources,
    }
    losses: list[float] = []
    manager = None
    if folder is not None:
        manager = open_checkpoints(Path(folder))
        if (last := manager.latest_step()) is not None:
            state, losses = restore(
                manager, last, state, method.carried, identity(own), Path(folder)
            )
    # Names the method itself supplies are not taken from the base, so nothing is held twice.
    given = jax.eval_shape(method.update, trainable, frozen).keys()
    params = {k: jnp.asarray(v) for k, v in base.params.items() if k not in given}
    done = start = len(losses)
    pending = None  # the step whose loss is still on the device

    def keep(step: int) -> None:
        if manager is not None and step > (manager.latest_step() or 0):
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(pack(state, method.carried)),
                    run=ocp.args.JsonSave({"losses": losses, "run": identity(own)}),
                ),
            )
            manager.wait_until_finished()

    try:
        with bar() as progress:
            line = progress.add_task("train", total=config.steps, completed=start, loss="", rate="")
            for step in range(start, config.steps):
                index = rows(step, config.batch_size, count, config.seed)
                batch = {k: v[index] for k, v in task.train.items()}
                batch["weight"] = np.ones(config.batch_size, np.float32)
                with deferred_interrupt():
                    if pending is not None and method.refresh is not None:
                        # What is refreshed reads the parameters: a loss that is not finite is told
                        # first.
                        settle(pending, losses, log)
                        pending = None
                    state = refreshed(method, method_config, state, step)
                    state, loss, norm = update(params, state, batch, step)
                    # The loss of the step before is read while this one runs on the device.
                    if pending is not None:
                        settle(pending, losses, log)
                    pending = (step, loss, norm)
                    done = step + 1
                    last_one = done == config.steps
                    if last_one or done % config.checkpoint_every == 0:
                        settle(pending, losses, log)
                        pending = None
                        keep(done)
                speed = progress.tasks[line].speed
                progress.update(
                    line,
                    completed=done,
                    loss=f"loss {losses[-1]:.3f}" if losses else "",
                    rate=f"{speed * config.batch_size:.1f} examples/s" if speed else "",
                )
    except KeyboardInterrupt:
        if pending is not None:
            settle(pending, losses, log)
        keep(done)
        raise
    finally:
        if manager is not None:
            manager.close()
    state = refreshed(method, method_config, state, None)
    return Trained(state[0], state[1], losses)


def refreshed(method: Method, config: Any, state: tuple, step: int | None) -> tuple:
    """The state with what the method replaces in its frozen arrays before a step, None after the
    last."""
    if method.refresh is None:
        return state
    trainable, frozen, opt_state = state
    fresh = method.refresh(trainable, frozen, step, config)
    return trainable, {**frozen, **jax.tree.map(jnp.asarray, fresh)}, opt_state


def settle(pending: tuple, losses: list[float], log) -> None:
    """Reads a finished step's loss, records it, and stops the run by name if it is not finite."""
    step, loss, norm = pending
    value = float(loss)
    if not np.isfinite(value):
        raise SolarError(
            f"the loss of step {step + 1} is {value}; training stopped. "
            "Lower learning_rate or raise warmup"
        )
    losses.append(value)
    if log is not None:
        log(step + 1, {"loss": value, "gradient_norm": float(norm)})


class deferred_interrupt:
    """Holds Ctrl-C back while a step is under way, so that state and step number always agree."""

    def __enter__(self):
        self.seen = False
        try:
            self.old = signal.signal(signal.SIGINT, self.note)
        except ValueError:  # not the main thread: interrupts do not arrive here anyway
            self.old = None

    def note(self, *_):
        self.seen = True

    def __exit__(self, kind, *_):
        if self.old is not None:
            signal.signal(signal.SIGINT, self.old)
        if self.seen and kind is None:
            raise KeyboardInterrupt


def bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def open_checkpoints(folder: Path) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints; the newest one is kept."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)


def pack(state: tuple, carried: Iterable[str]) -> dict[str, Any]:
    """The parts of the state that change; leaves of the optimiser's state in their order."""
    trainable, frozen, opt_state = state
    packed = {"trainable": trainable, "optimizer": list(jax.tree.leaves(opt_state))}
    kept = {name: frozen[name] for name in carried}
    return {**packed, "carried": kept} if kept else packed


def restore(
    manager: ocp.CheckpointManager,
    step: int,
    state: tuple,
    carried: Iterable[str],
    own: str,
    folder: Path,
) -> tuple[tuple, list[float]]:
    """State and losses of a checkpoint; raises SolarError where another config wrote it."""
    run = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run
    if run["run"] != own:
        raise SolarError(
            f"{folder} holds a run of another config; remove it or choose another folder"
        )
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, pack(state, carried))
    found = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
    ).state
    opt_state = jax.tree.unflatten(jax.tree.structure(state[2]), found["optimizer"])
    frozen = {**state[1], **found.get("carried", {})}
    return (found["trainable"], frozen, opt_state), list(run["losses"])


def parse(config: Mapping[str, Any], seed: int) -> TrainConfig:
    """A TrainConfig from a plain mapping; raises SolarError for unknown keys and for numbers of
    steps or examples below 1."""
    known = TrainConfig.__dataclass_fields__
    if unknown := sorted(set(config) - set(known)):
        raise SolarError(f"training has no setting {unknown[0]!r}; known are {', '.join(known)}")
    found = TrainConfig(**{**config, "seed": seed})
    for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
        value = getattr(found, name)
        if type(value) is not int or value < 1:
            raise SolarError(f"{name} is {value!r}; give a whole number of at least 1")
    return found
