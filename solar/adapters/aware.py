"""SOLAR-aware: goes on training an adapter through the channel that it will be sent over.

The factors are trained in the frames of the base (codec/frame_file.py): in leading directions of
each layer's inputs and of the gradients at its outputs, scaled by what an error there is worth, in
units of the factors' own mean size, so that a learning rate is relative. Before every step the host
asks the codec itself what a file of the budget would hold of the present factors; the model sees
that, and the gradient passes straight through to the factors (straight-through estimator: Bengio et
al., arXiv 1308.3432; with a quantiser in training: Jacob et al., arXiv 1712.05877). So the loss
that is minimised is that of the decoded file. Nothing about the file is new, and nobody but the
sender needs to know.

The codec turns the factors into those that are canonical in the metric; in between, the model's are
`left @ left_turn`, with turns that leave the update as it is and are held fixed over a step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from solar.adapters.adapter import Adapter
from solar.adapters.method import Leaves, Method
from solar.codec import activation, choose, container, frame_file, metric
from solar.codec.choose import Choice, Decided
from solar.codec.container import Base as Known
from solar.codec.frame_file import OCTAVE, FramesFile
from solar.codec.profiled import Dials
from solar.errors import SolarError
from solar.weights.base import Base

AGAIN = 10  # steps after which all is decided anew, and twice, four times, eight times as many
SIDES = ("left", "right")


@dataclass(frozen=True)
class AwareConfig:
    """budget_bytes: of a file, heads apart; directions: of a layer's frames that are trained, on
    either side; slope: the power of their eigenvalues that the units go with, 0 for equal steps in
    the metric and 1 for equal steps in the weights. start and frames name what goes on from where,
    for identities."""

    budget_bytes: int
    directions: int = 256
    slope: float = 0.0
    start: str = ""
    frames: str = ""


def method(
    start: Adapter, known: Known, frames: FramesFile, names: tuple[str, ...] | None
) -> Method:
    """The method that goes on with the adapter `start`. known: what container.identify says of the
    base's layers that it changes; names: those that a file lists, as container.listed has them."""
    ranks = {name: start.pairs[name][1].shape[0] for name in known.names}
    rank = max(ranks.values(), default=1)

    def hooks(base: Base, config: AwareConfig) -> tuple[dict[str, int], float]:
        return dict.fromkeys(known.names, rank), 0.0

    def init(key: jax.Array, base: Base, config: AwareConfig) -> tuple[dict, dict]:
        """Factors (layers, directions, rank) in units (layers, directions, 1), those of a side with
        a mean square of 1, heads alike, and each frame's directions (n, directions) in the space of
        the weights, all float32."""
        shape = len(known.names), config.directions, rank
        trainable = {side: np.zeros(shape, np.float32) for side in SIDES}
        units = {side: np.ones((*shape[:2], 1), np.float32) for side in SIDES}
        slope = round(16 * config.slope)
        frozen = {"choice": np.zeros(len(Dials._fields) + 1 + shape[0], np.float32)}
        for i, name in enumerate(known.names):
            b, a, scale = start.pairs[name]
            for side, index, own in zip(
                SIDES, frames.layers[name][::-1], (b * scale, a.T), strict=True
            ):
                frame = frame_file.frame_of(frames, index, len(own))
                turn, unit = metric.reflections(frame), frame_file.profile(frame, slope)
                units[side][i, : len(own), 0] = 2.0 ** (unit[: config.directions] / (2 * OCTAVE))
                seen = metric.into(turn, own)[: config.directions]
                trainable[side][i, : len(seen), : ranks[name]] = seen
                if f"frame.{index}" not in frozen:
                    frozen[f"frame.{index}"] = _directions(turn, config.directions)
            _balance(trainable, i)
        for side in SIDES:
            within = trainable[side] / units[side]
            units[side] *= float(np.sqrt(np.mean(within[within != 0] ** 2))) if within.any() else 1
            trainable[side] /= units[side]
            frozen[f"{side}_unit"] = units[side]
        for name, head in start.heads.items():
            size = float(np.sqrt(np.mean(np.square(head, dtype=np.float64)))) or 1.0
            trainable[name] = np.asarray(head / size, np.float32)
            frozen[f"{name}_unit"] = np.float32(size)
        nothing = np.zeros(shape, np.float32), np.zeros((shape[0], rank, rank), np.float32)
        for side in SIDES:
            frozen |= dict(zip((f"{side}_sent", f"{side}_turn"), nothing, strict=True))
        return jax.tree.map(jnp.asarray, trainable), jax.tree.map(jnp.asarray, frozen)

    def refresh(trainable: Leaves, frozen: Leaves, step: int | None, config: AwareConfig) -> dict:
        """What a file of the budget holds of the factors now, how they were turned for it, and what
        was decided for it, which holds for the steps to come: what is sent must not change at every
        step, nor at the end. Raises SolarError for a budget that no file fits."""
        now, turned = _canonical(trainable, frozen)
        seen = _seen(known, turned)
        overhead = container.overhead(names, activation.PARAMETERS)
        size = choose.sizes_of(seen, overhead, 0)
        nothing = np.zeros(sum(len(own.sizes) for own in seen if own), bool)
        container.check_budget(config.budget_bytes, size(nothing, 0.0), 0)
        choice = np.asarray(frozen["choice"])
        # A run of no steps at all has decided nothing when it ends.
        like = None if _due(step) or not choice.any() else _choice(frozen)
        plan = choose.plan(known, frames, seen, size, config.budget_bytes, like=like)
        sent = choose.sent_of(known, seen, plan)
        kept = choose.ranks_of(seen, plan.sent)
        found = {"choice": np.array([*plan.dials, plan.price, *kept], np.float32)}
        for at, side in enumerate(SIDES):
            whole = np.zeros(now[at].shape, np.float32)
            for i, pair in enumerate(sent):
                part = pair[at][: whole.shape[1]]
                whole[i, : len(part), : part.shape[1]] = part
            turn = np.linalg.pinv(now[at], rcond=1e-9) @ turned[at]
            found |= {f"{side}_sent": whole, f"{side}_turn": turn.astype(np.float32)}
        return found

    def update(trainable: Leaves, frozen: Leaves) -> dict[str, jax.Array]:
        leaves = _heads(trainable, frozen)
        left, right = (_through(trainable, frozen, side) for side in SIDES)
        for i, name in enumerate(known.names):
            inputs, outputs = (frozen[f"frame.{index}"] for index in frames.layers[name])
            leaves[f"{name}.lora_A"] = (inputs @ right[i]).T
            leaves[f"{name}.lora_B"] = outputs @ left[i]
        return leaves

    return Method("solar_aware", hooks, init, update, refresh, ("choice",))


def adapter(trained: Leaves, frozen: Leaves, known: Known, frames: FramesFile) -> Adapter:
    """What was trained, before the channel."""
    pairs = {}
    for i, name in enumerate(known.names):
        inputs, outputs = (np.asarray(frozen[f"frame.{k}"]) for k in frames.layers[name])
        left, right = (np.asarray(_factors(trained, frozen, side)[i]) for side in SIDES)
        pairs[name] = outputs @ left, (inputs @ right).T, 1.0
    heads = {name: np.asarray(leaf) for name, leaf in _heads(trained, frozen).items()}
    return Adapter(pairs, heads)


def decided(trained: Leaves, frozen: Leaves, known: Known) -> Decided:
    """What was trained, and what was decided for the file of it that the model saw last."""
    return Decided(_seen(known, _canonical(trained, frozen)[1]), _choice(frozen))


def _choice(frozen: Leaves) -> Choice:
    numbers = np.asarray(frozen["choice"]).tolist()
    count = len(Dials._fields)
    whole = [round(x) for x in numbers[:count] + numbers[count + 1 :]]
    return Choice(tuple(whole[count:]), Dials(*whole[:count]), numbers[count])


def _due(step: int | None) -> bool:
    """Whether all is decided anew: more and more seldom, as training settles."""
    times, rest = divmod(step or 0, AGAIN)
    return step is not None and not rest and times & (times - 1) == 0


def canonical(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The canonical factors of left right^T, all (layers, directions, rank) float64 in the metric,
    and energies (layers, rank); metric.seen has the same for a layer of weights."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right)
    p, sizes, qt = np.linalg.svd(r_left @ r_right.transpose(0, 2, 1))
    root = np.sqrt(sizes)[:, None, :]
    return (q_left @ p) * root, (q_right @ qt.transpose(0, 2, 1)) * root, sizes


def _canonical(trainable: Leaves, frozen: Leaves) -> tuple[list[np.ndarray], tuple]:
    """Both factors of all layers in the metric, float64, and what `canonical` makes of them. Raises
    SolarError where they are not finite."""
    now = [np.asarray(_factors(trainable, frozen, side), np.float64) for side in SIDES]
    if not all(np.isfinite(side).all() for side in now):
        raise SolarError(
            "the adapter's factors are not finite in training through the codec: it is too large, "
            "or learning_rate is"
        )
    return now, canonical(*now)


def _seen(known: Known, turned: tuple) -> list[metric.Seen | None]:
    return [_whole(known, turned, i) for i in range(len(known.names))]


def _whole(known: Known, turned: tuple, i: int) -> metric.Seen | None:
    """A layer's factors with the directions that are not trained, which are zero."""
    left, right, sizes = (part[i] for part in turned)
    kept = sizes > 1e-7 * sizes[0]  # as codec/factors.py drops what is nothing but rounding
    sides = []
    for width, own in zip(known.shapes[i], (left, right), strict=True):
        side = np.zeros((width, int(kept.sum())))
        side[: min(len(own), width)] = own[: min(len(own), width), kept]
        sides.append(side)
    return metric.Seen(*sides, sizes[kept]) if kept.any() else None


def _factors(trainable: Leaves, frozen: Leaves, side: str) -> jax.Array:
    """(layers, directions, rank) in the metric."""
    return trainable[side] * frozen[f"{side}_unit"]


def _heads(trainable: Leaves, frozen: Leaves) -> dict[str, jax.Array]:
    return {k: v * frozen[f"{k}_unit"] for k, v in trainable.items() if k not in SIDES}


def _through(trainable: Leaves, frozen: Leaves, side: str) -> jax.Array:
    """What was sent, with the gradient of what it was made of."""
    turned = _factors(trainable, frozen, side) @ frozen[f"{side}_turn"]
    return turned + jax.lax.stop_gradient(frozen[f"{side}_sent"] - turned)


def _directions(turn: metric.Reflections, count: int) -> np.ndarray:
    """(n, count) float32: leading directions over their scales; zero columns past the width."""
    width = len(turn.scale)
    found = np.zeros((width, count), np.float32)
    some = np.eye(width)[:, : min(count, width)]
    found[:, : some.shape[1]] = metric.out_of(turn, some)
    return found


def _balance(trainable: Mapping[str, np.ndarray], i: int) -> None:
    """Gives both factors of a layer the same norm, as the codec has them."""
    left, right = (float(np.linalg.norm(trainable[side][i].astype(np.float64))) for side in SIDES)
    if left and right:
        trainable["left"][i] *= np.sqrt(right / left)
        trainable["right"][i] *= np.sqrt(left / right)
