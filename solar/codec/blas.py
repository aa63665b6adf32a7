"""BLAS: one thread inside the codec, and a Cholesky factor that lets other threads work.

The codec factorises many small matrices, one LAPACK call each. There the threads of OpenBLAS wait
for one another longer than they work: on a busy 2-core machine a batch of 512 x 512 Cholesky solves
took 15 times the processor time with two threads that it took with one. Where work can be shared it
is shared by matrices, not within one.

scipy's own `spotrf` and `spotrs` hold the interpreter's lock while they work, so that two threads
take turns (1.9 ms a factor of 576 x 576 alone, 3.1 ms two at once); numpy's lets it go but takes 5
ms. Here LAPACK is called through ctypes, which lets the lock go.
So is BLAS where half a Gram matrix is enough: NumPy multiplies one half too, and then mirrors it,
which takes a quarter of the time.
"""

import ctypes
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """`function` run with one BLAS thread; the caller's setting returns afterwards."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        # XLA calls scipy's LAPACK; it must be loaded before its threads can be limited.
        import scipy.linalg.cython_lapack  # noqa: F401
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


_NUMBER = ctypes.POINTER(ctypes.c_int)
_FLOAT = ctypes.POINTER(ctypes.c_float)
_CALLS = {
    "ssyrk": (ctypes.c_char_p, ctypes.c_char_p, _NUMBER, _NUMBER, _FLOAT, ctypes.c_void_p, _NUMBER,
              _FLOAT, ctypes.c_void_p, _NUMBER),
    "spotrf": (ctypes.c_char_p, _NUMBER, ctypes.c_void_p, _NUMBER, _NUMBER),
    "spotrs": (ctypes.c_char_p, _NUMBER, _NUMBER, ctypes.c_void_p, _NUMBER, ctypes.c_void_p,
               _NUMBER, _NUMBER),
}  # fmt: skip


@lru_cache(maxsize=len(_CALLS))
def _routine(name: str) -> Callable:
    """ssyrk(uplo, trans, n, k, alpha, a, lda, beta, c, ldc), spotrf(uplo, n, a, lda, info) or
    spotrs(uplo, n, nrhs, a, lda, b, ldb, info) of the library that scipy brings."""
    from scipy.linalg import cython_blas, cython_lapack

    capsule = (cython_blas.__pyx_capi__ | cython_lapack.__pyx_capi__)[name]
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    kind = ctypes.CFUNCTYPE(None, *_CALLS[name])
    return kind(address_of(capsule, name_of(capsule)))


def cholesky(matrix: np.ndarray) -> bool:
    """Puts the lower Cholesky factor of a symmetric matrix (a, a) float32, in Fortran's order, in
    the place of its lower triangle; False where it is not positive definite.

    Raises ValueError for another type or order.
    """
    if matrix.dtype != np.float32 or not matrix.flags.f_contiguous or not matrix.flags.writeable:
        raise ValueError("cholesky needs a float32 matrix in Fortran's order, to write to")
    rows, columns = matrix.shape
    if rows != columns:
        raise ValueError(f"cholesky needs a square matrix, not {rows} x {columns}")
    count, info = ctypes.c_int(rows), ctypes.c_int()
    width = ctypes.c_int(max(rows, 1))
    _routine("spotrf")(b"L", count, matrix.ctypes.data, width, info)
    return info.value == 0


def lower_gram(matrix: np.ndarray) -> np.ndarray:
    """P P^T (a, a) float32 of P (a, D) float32, in Fortran's order: its lower triangle, and zeros
    above. Raises ValueError for another type."""
    if matrix.dtype != np.float32 or matrix.ndim != 2:
        raise ValueError("lower_gram needs a float32 matrix")
    matrix = np.ascontiguousarray(matrix)  # Fortran reads it as its transpose
    count, length = matrix.shape
    found = np.zeros((count, count), np.float32, order="F")
    sizes = ctypes.c_int(count), ctypes.c_int(length)
    leading, width = ctypes.c_int(max(length, 1)), ctypes.c_int(max(count, 1))
    _routine("ssyrk")(
        b"L", b"T", *sizes, ctypes.c_float(1), matrix.ctypes.data, leading, ctypes.c_float(0),
        found.ctypes.data, width,
    )  # fmt: skip
    return found


def solved(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """X (a, t) float32 with A X = right (a, t), A the matrix whose factor `cholesky` has put into
    the lower triangle of `lower` (a, a). Raises ValueError for another type, order or shape."""
    for matrix in (lower, right):
        if matrix.dtype != np.float32 or not matrix.flags.f_contiguous:
            raise ValueError("solved needs float32 matrices in Fortran's order")
    if lower.shape != (len(right), len(right)):
        raise ValueError(f"solved needs a factor of {len(right)} rows, not {lower.shape}")
    found = right.copy(order="F")
    count, targets = (ctypes.c_int(own) for own in right.shape)
    width, info = ctypes.c_int(max(len(right), 1)), ctypes.c_int()
    _routine("spotrs")(
        b"L", count, targets, lower.ctypes.data, width, found.ctypes.data, width, info
    )
    return found
