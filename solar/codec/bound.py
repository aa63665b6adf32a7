"""Bound: what is proved about the error of a decoded update, and the check that it holds.

With E_L = L' - L and E_R = R' - R, for any decoded factors,

    ||dW - L' R'^T||_F <= ||E_L||_F ||R||_2 + ||L||_2 ||E_R||_F + ||E_L||_2 ||E_R||_F,

and on outputs ||(dW - dW') x|| <= ||dW - dW'||_2 ||x||. Proofs: docs/error-bound.md. Norms of
products come from small matrices in float64; dW is never formed. What is known before encoding is
tail.py's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from solar.codec.blas import one_thread
from solar.codec.factors import (
    Factors,
    by_shape,
    core_of_error,
    core_of_product,
    stack_pair,
)
from solar.errors import SolarError

# Rounding of the float64 norms themselves, relative to the certificate and to ||L||_F ||R||_F.
SLACK_RELATIVE = 1e-9
SLACK_ABSOLUTE = 1e-13


class BoundViolated(SolarError):
    """A proved bound does not hold: the code, not the input, is wrong."""


class LayerBound(NamedTuple):
    """One layer: ||dW||_F, measured ||dW - dW'||_F and its certificate, float64."""

    norm: float
    measured: float
    certificate: float

    @property
    def slack(self) -> float:
        """Share of the certificate that the error leaves unused, 0 where it is tight."""
        return 1 - self.measured / self.certificate if self.certificate > 0 else 0.0


def frobenius(matrices: np.ndarray) -> np.ndarray:
    """(b,) Frobenius norms of (b, i, j)."""
    return np.sqrt(np.sum(np.asarray(matrices, np.float64) ** 2, axis=(-2, -1)))


def spectral(matrices: np.ndarray) -> np.ndarray:
    """(b,) spectral norms of (b, d, r), from the r x r Gram matrix in float64."""
    matrices = np.asarray(matrices, np.float64)
    gram = matrices.swapaxes(-1, -2) @ matrices
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[..., -1], 0))


def certificate(left, right, left_, right_) -> np.ndarray:
    """(b,) upper bounds of ||L R^T - L' R'^T||_F; factors (b, d, r), float64."""
    error_left, error_right = left_ - left, right_ - right
    return (
        frobenius(error_left) * spectral(right)
        + spectral(left) * frobenius(error_right)
        + spectral(error_left) * frobenius(error_right)
    )


@one_thread
def check(original: Mapping[str, Factors], decoded: Mapping[str, Factors]) -> dict[str, LayerBound]:
    """Measured error and certificate of every layer. Raises BoundViolated naming the first layer
    whose measured error exceeds its certificate by more than the rounding of the norms."""
    result: dict[str, LayerBound] = {}
    for names in by_shape(original).values():
        left, right, left_, right_ = stack_pair(original, decoded, names)
        norms = frobenius(core_of_product(left, right))
        measured = frobenius(core_of_error(left, right, left_, right_))
        bounds = certificate(left, right, left_, right_)
        rounding = SLACK_ABSOLUTE * frobenius(left) * frobenius(right)
        for i, name in enumerate(names):
            hold(f"certificate of layer {name}", measured[i],
                 bounds[i] * (1 + SLACK_RELATIVE) + rounding[i])  # fmt: skip
            result[name] = LayerBound(float(norms[i]), float(measured[i]), float(bounds[i]))
    return {name: result[name] for name in sorted(result)}


def hold(what: str, measured: float, bound: float) -> None:
    """Raises BoundViolated unless measured <= bound (also where either is not a number)."""
    if not measured <= bound:
        raise BoundViolated(
            f"{what} is violated: measured {measured:.9g} exceeds {bound:.9g}; "
            "this is a fault of the codec, please report it"
        )


def summary(layers: Mapping[str, LayerBound]) -> dict[str, Any]:
    """Relative error and bound over all layers, slack, and the layer that is worst off."""
    total = np.sqrt(sum(x.norm**2 for x in layers.values()))
    measured = np.sqrt(sum(x.measured**2 for x in layers.values()))
    bound = np.sqrt(sum(x.certificate**2 for x in layers.values()))
    worst = max(layers, key=lambda name: layers[name].measured)
    scale = 1 / total if total > 0 else 0.0
    return {
        "relative_error": float(measured * scale),
        "bound": float(bound * scale),
        "slack": float(1 - measured / bound) if bound > 0 else 0.0,
        "worst": {"name": worst, "measured": layers[worst].measured,
                  "certificate": layers[worst].certificate, "slack": layers[worst].slack},
        "smallest_slack": min(x.slack for x in layers.values()),
        "layers": [
            {"name": name, "norm": x.norm, "measured": x.measured,
             "certificate": x.certificate, "slack": x.slack}
            for name, x in layers.items()
        ],
    }  # fmt: skip


def output_bound(
    original: Factors, decoded: Factors, inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """||(dW - dW') x|| and its bound ||dW - dW'||_2 ||x||, (s,) float64, for inputs (s, n).

    Raises BoundViolated where one exceeds its bound.
    """
    sides = stack_pair({"": original}, {"": decoded}, [""])
    left, right, left_, right_ = (side[0] for side in sides)
    x = np.asarray(inputs, np.float64)
    outputs = (x @ right_) @ (left_ - left).T + (x @ (right_ - right)) @ left.T
    norm = np.linalg.norm(core_of_error(*sides)[0], 2)
    lengths = np.linalg.norm(x, axis=1)
    measured, bounds = np.linalg.norm(outputs, axis=1), norm * lengths
    scale = SLACK_ABSOLUTE * np.linalg.norm(left) * np.linalg.norm(right)
    allowed = bounds * (1 + SLACK_RELATIVE) + scale * lengths
    for i in np.flatnonzero(~(measured <= allowed))[:1]:
        hold(f"output bound at input {i}", measured[i], allowed[i])
    return measured, bounds
