"""The factors B and A of one layer's update, from what each method of PEFT stores.

| method | update |
| --- | --- |
| LoRA (arXiv 2106.09685) | ``s B A`` |
| AdaLoRA (2303.10512) | ``s B diag(E) A`` |
| VeRA (2310.11454) | ``diag(b) B diag(d) A``, B and A shared by all layers and cut to each |
| LoHa (2108.06098) | ``s (w1_a w1_b) * (w2_a w2_b)``, an elementwise product |
| bare | the update itself |

The last two are turned into factors by their thin singular value decomposition.
"""

from collections.abc import Mapping

import numpy as np

from solar.errors import SolarError
from solar.weights.stored import Stored

CUTOFF = 1e-7  # singular values below this share of the largest are rounding
BARE = "update"  # the one part of a layer whose update is stored as it is
PARTS = {
    "LORA": ("lora_A", "lora_B"),
    "ADALORA": ("lora_A", "lora_B", "lora_E"),
    "VERA": ("vera_lambda_b", "vera_lambda_d"),
    "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    BARE: (BARE,),
}

Shape = tuple[int, int]


def outline(method: str, parts: Mapping[str, Stored]) -> Shape | None:
    """(outputs, inputs) of the update that ``parts`` make, None where their shapes do not multiply.

    Of VeRA, whose A is shared, inputs is the most that a layer can have.
    """
    shapes = {name: stored.shape for name, stored in parts.items()}
    vectors = ("vera_lambda_b", "vera_lambda_d")
    if any(len(shape) != (1 if name in vectors else 2) for name, shape in shapes.items()):
        return None
    if method in ("LORA", "ADALORA"):
        (rank, inputs), (outputs, other) = shapes["lora_A"], shapes["lora_B"]
        whole = rank == other and shapes.get("lora_E", (rank, 1)) == (rank, 1)
    elif method == "VERA":
        (rank, inputs), (most, other) = shapes["vera_A"], shapes["vera_B"]
        (outputs,), width = shapes["vera_lambda_b"], shapes["vera_lambda_d"]
        whole = (rank,) == (other,) == width and outputs <= most
    elif method == "LOHA":
        (outputs, first), (one, inputs) = shapes["hada_w1_a"], shapes["hada_w1_b"]
        second = shapes["hada_w2_a"], shapes["hada_w2_b"]
        whole = first == one and (second[0][0], second[1][1]) == (outputs, inputs)
        whole = whole and second[0][1] == second[1][0]
    else:
        (outputs, inputs), whole = shapes[BARE], True
    return (outputs, inputs) if whole else None


def factors(
    method: str, layer: str, parts: Mapping[str, Stored], shape: Shape | None
) -> tuple[np.ndarray, np.ndarray]:
    """B (out, r) and A (r, in) float32 of one layer, without its scale. ``shape``: (outputs,
    inputs) of the base's projection, None where no base is known.

    Raises SolarError for parts that do not multiply or do not fit, and for non-finite values.
    """
    found = outline(method, parts)
    wide = method == "VERA" and found and shape
    fits = (
        found and shape in (None, found) or wide and found[0] == shape[0] and found[1] >= shape[1]
    )
    if not fits:
        sizes = [f"{name} {stored.shape}" for name, stored in parts.items()]
        listed = ", ".join(sizes[:-1]) + (" and " if len(sizes) > 1 else "") + sizes[-1]
        verb = "do" if len(sizes) > 1 else "does"
        raise SolarError(
            f"{layer}: {listed} {verb} not fit each other; the file is damaged"
            if shape is None
            else f"{layer}: {listed} {verb} not fit a projection of {shape[1]} to {shape[0]}; "
            "check that the adapter belongs to this base"
        )
    held = {name: finite(f"{layer}.{name}", stored) for name, stored in parts.items()}
    if method == "LORA":
        return held["lora_B"], held["lora_A"]
    if method == "ADALORA":
        return held["lora_B"], held["lora_A"] * held["lora_E"]
    outputs, inputs = shape or found
    if method == "VERA":
        b = held["vera_lambda_b"][:, None] * held["vera_B"][:outputs]
        return b, held["vera_lambda_d"][:, None] * held["vera_A"][:, :inputs]
    if method == "LOHA":
        return hadamard(*(held[name] for name in PARTS["LOHA"]))
    return thin(held[BARE])


def finite(name: str, stored: Stored) -> np.ndarray:
    """The values in float32; raises SolarError where one is infinite or not a number."""
    with np.errstate(over="ignore"):  # a float64 too large is found below
        values = np.asarray(stored.read(), np.float32)
    if not np.isfinite(values).all():
        raise SolarError(f"{name} holds non-finite values; train the adapter again")
    return values


def hadamard(
    w1_a: np.ndarray, w1_b: np.ndarray, w2_a: np.ndarray, w2_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Balanced factors of ``(w1_a @ w1_b) * (w2_a @ w2_b)``, by its thin SVD in float64.

    Such a product has rank r1 r2 at most: row i of its left factor is kron(w1_a[i], w2_a[i]). The
    product itself is formed only where that is no smaller.
    """
    w1_a, w1_b, w2_a, w2_b = (np.asarray(w, np.float64) for w in (w1_a, w1_b, w2_a, w2_b))
    (outputs, first), inputs, second = w1_a.shape, w1_b.shape[1], w2_a.shape[1]
    if first * second >= min(outputs, inputs):
        return thin((w1_a @ w1_b) * (w2_a @ w2_b))
    left = (w1_a[:, :, None] * w2_a[:, None, :]).reshape(outputs, -1)
    right = (w1_b[:, None, :] * w2_b[None, :, :]).reshape(-1, inputs)
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right.T)
    return balanced(*np.linalg.svd(r_left @ r_right.T), q_left, q_right)


def thin(update: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Balanced factors (out, r), (r, in) float32 of an update, from its thin SVD in float64."""
    return balanced(*np.linalg.svd(np.asarray(update, np.float64), full_matrices=False))


def balanced(u, s, vt, q_left=None, q_right=None) -> tuple[np.ndarray, np.ndarray]:
    """Factors that share the singular values equally; what is below CUTOFF is dropped."""
    kept = int((s > CUTOFF * s[:1].max(initial=0.0)).sum())
    root = np.sqrt(s[:kept])
    b, a = u[:, :kept] * root, root[:, None] * vt[:kept]
    b = b if q_left is None else q_left @ b
    a = a if q_right is None else a @ q_right.T
    return b.astype(np.float32), a.astype(np.float32)
