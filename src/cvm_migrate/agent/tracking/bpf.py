"""bpf(2) through ctypes: arrays that user space can map, programs for BTF tracepoints."""

from __future__ import absolute_import

import ctypes
import errno
import resource
import struct
import sys

from cvm_migrate.agent.tracking import system

assert sys.platform != "win32", "eBPF is Linux's"  # noqa: S101 - tells type checkers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Text

# linux/bpf.h
_MAP_CREATE, _PROG_LOAD, _RAW_TRACEPOINT_OPEN = 0, 5, 17
_MAP_TYPE_ARRAY = 2
_F_MMAPABLE = 1 << 10
_PROG_TYPE_TRACING = 26
_TRACE_RAW_TP = 23
# The start of union bpf_attr for each command; what isn't given is zero.
_MAP_ATTRIBUTES = struct.Struct("=IIIII")
_LOAD_ATTRIBUTES = struct.Struct("=IIQQIIQII16sIIIIQIIQII")
_OPEN_ATTRIBUTES = struct.Struct("=QI")
_LOG_SIZE = 1 << 20
# What the generated programs declare. The kernel lets only GPL-compatible ones read its structures, so the code
# that programs.py emits is offered under the GPL as well as under the project's own licence.
_LICENCE = b"GPL"


class VerifierError(Exception):
    """The kernel did not take a program; the text ends with the last lines of its log."""


def _bpf(command, attributes):
    # type: (int, bytes) -> int
    number = system.bpf_number()
    if number is None:
        raise OSError(errno.ENOSYS, "no number of bpf(2) is known for this machine")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return system.syscall(
        number, ctypes.c_int(command), ctypes.byref(buffer), ctypes.c_uint(len(attributes))
    )


def create_array(pages):
    # type: (int) -> int
    """Return the descriptor of an array of pages of 4096 bytes, all zero, that can be mapped."""
    attributes = _MAP_ATTRIBUTES.pack(_MAP_TYPE_ARRAY, 4, 4096, pages, _F_MMAPABLE)
    try:
        return _bpf(_MAP_CREATE, attributes)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
    # Until Linux 5.11 maps counted as locked memory, of which root has 64 KiB too until it asks for more.
    try:
        resource.setrlimit(
            resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
    except ValueError:
        raise OSError(errno.EPERM, "bpf(2) needs root")
    return _bpf(_MAP_CREATE, attributes)


def load(code, tracepoint_type):
    # type: (bytes, int) -> int
    """Return the descriptor of a program for a BTF tracepoint.

    Raises:
        VerifierError: The kernel refused it.
    """
    try:
        return _load(code, tracepoint_type, None)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_SIZE)
        try:
            # The log costs time, so it is asked for only now.
            return _load(code, tracepoint_type, log)
        except OSError:
            lines = log.value.decode("ascii", "replace").strip().splitlines()[-4:]
            raise VerifierError(
                "the kernel refused the program (%s) %s" % (error.strerror, " / ".join(lines))
            )


def _load(code, tracepoint_type, log):
    # type: (bytes, int, Any) -> int
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(_LICENCE)
    attributes = _LOAD_ATTRIBUTES.pack(
        _PROG_TYPE_TRACING,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        1 if log else 0,
        _LOG_SIZE if log else 0,
        ctypes.addressof(log) if log else 0,
        0,
        0,
        b"cvm_migrate",
        0,
        _TRACE_RAW_TP,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        tracepoint_type,
    )
    return _bpf(_PROG_LOAD, attributes)


def attach(program):
    # type: (int) -> int
    """Return a descriptor that keeps a program at its tracepoint for as long as it is open."""
    return _bpf(_RAW_TRACEPOINT_OPEN, _OPEN_ATTRIBUTES.pack(0, program))


def reason_of(error):
    # type: (BaseException) -> Text
    """Return one line that says why eBPF can't serve."""
    if isinstance(error, EnvironmentError) and error.errno in (errno.EPERM, errno.EACCES):
        return "bpf(2) is not permitted (needs root, or CAP_BPF and CAP_PERFMON)"
    return system.reason_of(error)
