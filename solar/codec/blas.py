"""BLAS: one thread inside the codec, and a Cholesky factor that lets other threads work.

The codec factorises many small matrices, one LAPACK call each. There the threads of OpenBLAS wait
for one another longer than they work: on a busy 2-core machine a batch of 512 x 512 Cholesky solves
took 15 times the processor time with two threads that it took with one. Where work can be shared it
is shared by matrices, not within one.

scipy's own `spotrf` holds the interpreter's lock while it works, so that two threads take turns
(1.9 ms a factor of 576 x 576 alone, 3.1 ms two at once); numpy's lets it go but takes 5 ms. Here
LAPACK is called through ctypes, which lets the lock go.
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


@lru_cache(maxsize=1)
def _spotrf() -> Callable:
    """LAPACK's spotrf(uplo, n, a, lda, info), of the library that scipy brings."""
    from scipy.linalg import cython_lapack

    capsule = cython_lapack.__pyx_capi__["spotrf"]
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    number = ctypes.POINTER(ctypes.c_int)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, number, ctypes.c_void_p, number, number)
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
    _spotrf()(b"L", count, matrix.ctypes.data, width, info)
    return info.value == 0
