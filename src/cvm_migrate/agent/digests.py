"""Digests of chunks: the algorithms that this Python has."""

from __future__ import absolute_import

import hashlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Callable, List, Optional, Tuple

xxhash = None  # type: Optional[ModuleType]
try:
    import xxhash
except ImportError:  # the common case: nothing is installed on a source
    xxhash = None

_ALGORITHMS = []  # type: List[Tuple[str, Callable[[], Any]]]
_xxh3_128 = getattr(xxhash, "xxh3_128", None)  # type: Optional[Callable[[], Any]]
if _xxh3_128 is not None:  # xxhash 2.0 and later
    _ALGORITHMS.append(("xxh3-128", _xxh3_128))
_ALGORITHMS.append(("sha256", hashlib.sha256))

#: Names of the algorithms, best first.
NAMES = tuple(name for name, _ in _ALGORITHMS)
_BY_NAME = dict(_ALGORITHMS)


def new(algorithm):
    # type: (str) -> Any
    """Return a fresh digest with ``update`` and ``digest``.

    Raises:
        KeyError: This Python does not have it; see :data:`NAMES`.
    """
    return _BY_NAME[algorithm]()


def digest(algorithm, data):
    # type: (str, Any) -> bytes
    """Return the digest of bytes or of a view of a buffer.

    Raises:
        KeyError: This Python does not have the algorithm.
    """
    made = new(algorithm)
    made.update(data)
    return bytes(made.digest())
