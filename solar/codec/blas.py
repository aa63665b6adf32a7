"""BLAS: one thread inside the codec.

The codec factorises many small matrices, one LAPACK call each. There the threads of OpenBLAS wait
for one another longer than they work: on a busy 2-core machine a batch of 512 x 512 Cholesky solves
took 15 times the processor time with two threads that it took with one. Where work can be shared it
is shared by matrices, not within one.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

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
