"""Compression: what this Python has, within bounds when a peer's bytes are opened, and whether it pays."""

from __future__ import absolute_import, division

import importlib
import struct
import sys
import threading
import zlib

from cvm_migrate.agent.clock import monotonic
from cvm_migrate.agent.pump import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional

    Compress = Callable[[Any], bytes]

# How often a compressor that does not pay is tried again, in chunks that were sent and in seconds.
_TRY_EVERY = 32
_TRY_AGAIN = 10.0
# Compressing must save at least a tenth of the time, as the figures are rough.
_GAIN = 0.9
# While it pays and the connection takes all at once, the path may have become faster: after so many seconds chunks
# go raw until one is not much faster than before, at most so many.
_LOOK_CHUNKS = 16
_LOOK_AGAIN = 10.0
# zlib costs more than it can bring on a path that is faster, in seconds a byte.
_ZLIB_BELOW = 1.0 / (40 << 20)
# Weight of a new measurement.
_WEIGHT = 0.25
_SAMPLE = 4096
_SAMPLES = 3
# A sample that shrinks to this part says that the chunk is worth compressing.
_SHRINKS = 0.8

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_NO_SIZE = -1


def _find_zstd():
    # type: () -> Optional[Any]
    """Return a module that knows zstd: the standard library's, or what is installed."""
    for name in ("compression.zstd", "zstandard", "pyzstd", "zstd"):
        try:
            return importlib.import_module(name)
        except Exception:  # noqa: BLE001, S112 - a broken build of it is no reason to end either
            continue
    return None


_zstd = _find_zstd()
_PY2 = sys.version_info[0] < 3


def _bytes(data):
    # type: (Any) -> bytes
    """Return a copy of a view, or bytes as they are; Python 2's bytes() of a view is its description."""
    return data if isinstance(data, bytes) else data.tobytes()


def available():
    # type: () -> List[str]
    """Return the codecs of this Python, the best first."""
    return (["zstd"] if _zstd is not None else []) + ["zlib", "raw"]


def compressor(codec, level):
    # type: (str, int) -> Compress
    """Return a function that compresses; not to be shared by threads."""
    if codec == "zlib":
        # Python 2's zlib takes no view.
        return lambda data: zlib.compress(_bytes(data) if _PY2 else data, level)
    zstd = _zstd  # type: Any
    if hasattr(zstd, "ZstdCompressor") and hasattr(zstd, "backend"):
        return zstd.ZstdCompressor(level=level, write_content_size=True).compress  # type: ignore[no-any-return]
    return lambda data: zstd.compress(data, level)


def decompress(codec, data, length):
    # type: (int, Any, int) -> bytes
    """Return the *length* bytes that *data* stands for; never makes more of it.

    Raises:
        FrameError: It stands for something else.
    """
    try:
        result = _open_zlib(data, length) if codec == frames.ZLIB else _open_zstd(data, length)
    except frames.FrameError:
        raise
    except Exception as error:  # noqa: BLE001 - each library has errors of its own
        raise frames.FrameError("a chunk that cannot be decompressed: %s" % (error,))
    if len(result) != length:
        raise frames.FrameError("a chunk of %d bytes holds %d" % (length, len(result)))
    return result


def _open_zlib(data, length):
    # type: (Any, int) -> bytes
    inflate = zlib.decompressobj()
    result = inflate.decompress(_bytes(data), length)
    # All of it may be out before the end mark has been read.
    if not _at_end(inflate):
        raise frames.FrameError("a zlib chunk that does not end where it should")
    return result


def _at_end(inflate):
    # type: (Any) -> bool
    rest = inflate.decompress(inflate.unconsumed_tail, 1)
    left = inflate.unconsumed_tail or inflate.unused_data
    # Python 2 cannot tell whether the end mark was there; the digest will.
    return not rest and not left and getattr(inflate, "eof", True)


def _open_zstd(data, length):
    # type: (Any, int) -> bytes
    if _zstd is None:
        raise frames.FrameError("a zstd chunk, which was not agreed on")
    # The libraries allocate what the data announces: look before they do.
    if zstd_content_size(_bytes(data[:18])) != length:
        raise frames.FrameError("a zstd chunk that announces another size")
    if hasattr(_zstd, "backend"):
        return _zstd.ZstdDecompressor().decompress(data, max_output_size=length)  # type: ignore[no-any-return]
    if hasattr(_zstd, "ZstdDecompressor"):
        return _zstd.ZstdDecompressor().decompress(data, length)  # type: ignore[no-any-return]
    return _zstd.decompress(_bytes(data))  # type: ignore[no-any-return]


def zstd_content_size(start):
    # type: (bytes) -> int
    """Return the size that a zstd frame announces (RFC 8878, 3.1.1.1), -1 where it announces none."""
    if start[:4] != _ZSTD_MAGIC or len(start) < 6:
        return _ZSTD_NO_SIZE
    descriptor = ord(start[4:5])
    single = descriptor >> 5 & 1
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    field = start[at : at + width]
    if width == 0 or len(field) < width:
        return _ZSTD_NO_SIZE
    value = struct.unpack({1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[width], field)[0]  # type: int
    return value + 256 if width == 2 else value


class Chooser(object):
    """Decides for each chunk of one stream whether to compress it; shared by its threads.

    Args:
        codec: ``raw``, ``zlib``, ``zstd``, or ``auto``.
        best: The codec that ``auto`` means.
        level: How hard it tries.
        threads: How many compress for one connection, while it sends.
    """

    def __init__(self, codec, best, level=1, clock=monotonic, threads=1):
        # type: (str, str, int, Callable[[], float], int) -> None
        self.codec = best if codec == "auto" else codec
        self.level = level
        self._auto = codec == "auto"
        self._threads = threads
        self._clock = clock
        self._lock = threading.Lock()
        self._send_time = None  # type: Optional[float]
        self._pack_time = None  # type: Optional[float]
        self._ratio = 1.0
        self._pays = False
        self._chunks = 0
        self._tried = None  # type: Optional[float]
        # When the path was last seen to be the limit, and how many chunks go raw to see whether it still is.
        self._waited = clock()
        self._looking = 0
        self.compressed = 0
        self.plain = 0

    def begin(self):
        # type: () -> None
        """Count anew, for another stream on the same path."""
        with self._lock:
            self.compressed = 0
            self.plain = 0

    def sent(self, count, seconds, waited, raw):
        # type: (int, float, bool, bool) -> None
        """Note that *count* bytes were on their way for *seconds*, waits for the disk not counted.

        Args:
            count: Bytes.
            seconds: From the first to the last of them.
            waited: Whether the connection, or a limit, did not take all of them at once.
            raw: Whether they were not compressed.
        """
        if not self._auto or not count:
            return
        measured = seconds / count
        with self._lock:
            if self._pays and not raw and not waited:
                # The compressor is the limit: what a buffer took at once says nothing of the path.
                if self._clock() - self._waited > _LOOK_AGAIN:
                    self._waited = self._clock()
                    self._looking = _LOOK_CHUNKS
                return
            if waited:
                self._waited = self._clock()
            if self._looking and self._send_time is not None:
                self._looking -= 1
                if measured * 2 > self._send_time:
                    self._looking = 0
                elif self._looking:
                    return
                else:
                    self._send_time = measured
                    self._judge()
            self._send_time = _blend(self._send_time, measured)

    def wants(self, chunk, compress):
        # type: (Any, Compress) -> bool
        """Whether to compress this chunk."""
        if self.codec == "raw":
            return False
        if not self._auto:
            return True
        with self._lock:
            self._chunks += 1
            wanted = not self._looking if self._pays else self._try_now()
        if not wanted or not _shrinks(chunk, compress):
            # What does not shrink says nothing about the compressor: the next one is looked at.
            return False
        with self._lock:
            self._chunks = 0
            self._tried = self._clock()
        return True

    def _try_now(self):
        # type: () -> bool
        send = self._send_time
        if send is None or (self.codec == "zlib" and send < _ZLIB_BELOW):
            return False
        if self._tried is None:
            return True
        hopeless = self._pack_time is not None and send * 2 < self._pack_time / self._threads
        if hopeless and self._clock() - self._tried < _TRY_AGAIN:
            return False
        return self._chunks >= _TRY_EVERY

    def tried(self, before, after, seconds):
        # type: (int, int, float) -> None
        """Note that a chunk of *before* bytes became *after* bytes in *seconds*."""
        if not self._auto:
            return
        with self._lock:
            self._pack_time = _blend(self._pack_time, seconds / before)
            self._ratio = _blend(self._ratio if self._pays else None, after / before)
            self._judge()

    def _judge(self):
        # type: () -> None
        if self._pack_time is not None and self._send_time is not None:
            # Both go on at the same time: the slower one counts.
            cost = max(self._pack_time / self._threads, self._ratio * self._send_time)
            self._pays = cost < _GAIN * self._send_time

    def count(self, raw, length):
        # type: (bool, int) -> None
        """Note how a chunk went off, for :attr:`mostly`."""
        with self._lock:
            if raw:
                self.plain += length
            else:
                self.compressed += length

    @property
    def mostly(self):
        # type: () -> str
        """The codec that most bytes went with."""
        return self.codec if self.compressed > self.plain else "raw"


def _blend(old, new):
    # type: (Optional[float], float) -> float
    return new if old is None else old + (new - old) * _WEIGHT


def _shrinks(chunk, compress):
    # type: (Any, Compress) -> bool
    """Whether three pieces of a chunk shrink: a look that costs a hundredth of compressing it."""
    length = len(chunk)
    if length <= _SAMPLES * _SAMPLE:
        return True
    step = (length - _SAMPLE) // (_SAMPLES - 1)
    sample = b"".join(
        [_bytes(chunk[at : at + _SAMPLE]) for at in range(0, length, step)][:_SAMPLES]
    )
    return len(compress(sample)) < _SHRINKS * len(sample)
