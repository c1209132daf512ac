"""A clock that nobody sets: Python 2 has none of its own."""

from __future__ import absolute_import

import ctypes
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

_CLOCK_MONOTONIC = 1


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def _by_libc():
    # type: () -> Callable[[], float]
    """Return a clock that asks clock_gettime, which an old glibc keeps in librt; else one of 10 ms steps."""
    for name in (None, "librt.so.1"):
        try:
            gettime = ctypes.CDLL(name, use_errno=True).clock_gettime
        except (OSError, AttributeError):
            continue
        gettime.argtypes = [ctypes.c_int, ctypes.POINTER(_Timespec)]
        gettime.restype = ctypes.c_int
        return _clock(gettime)
    return lambda: os.times()[4]


def _clock(gettime):
    # type: (Callable[..., int]) -> Callable[[], float]
    def now():
        # type: () -> float
        moment = _Timespec()
        if gettime(_CLOCK_MONOTONIC, ctypes.byref(moment)):
            raise OSError(ctypes.get_errno(), "clock_gettime")
        return float(moment.seconds + moment.nanoseconds / 1e9)

    return now


#: Seconds since some moment in the past.
monotonic = getattr(time, "monotonic", None) or _by_libc()  # type: Callable[[], float]
