"""Every error of the library; the branch says what the caller can do next.

::

    CvmMigrateError
    ├── RequestError            mend the call and call again; nothing was touched
    │   ├── InvalidRequestError     an argument is wrong (also a ValueError)
    │   ├── StepOrderError          a step was called before another that it needs
    │   ├── UnsafeTargetError       the target is mounted, in use, too small, or the source itself
    │   ├── NotFoundError           no such device, instance, file, image, plan
    │   └── CredentialsError        none found, or the cloud refuses them
    ├── ConditionError          mend what the message names, then repeat the same step
    │   ├── PermissionDeniedError   rights are missing
    │   ├── UnsupportedError        this kernel, file system, instance type or Python cannot do it
    │   ├── DiskError               a disk refused a range
    │   │   ├── SourceReadError
    │   │   └── TargetWriteError
    │   ├── NoRoomError             a file system is full
    │   ├── NotConvergingError      the source writes faster than the path carries
    │   ├── QuotaError              an account's quota or stock is used up
    │   └── InstanceStateError      the instance is in a state that forbids the call
    ├── TransientError          repeat the same step; what has been copied stays
    │   ├── AgentLostError          an agent ended or fell silent
    │   ├── ConnectionLostError     the data path was cut for longer than allowed
    │   ├── ThrottledError          the cloud asks for slower calls, or another task runs
    │   ├── ServiceError            the cloud failed inside, or its reply was lost
    │   ├── FreezeLostError         the freeze ended before the final sync did
    │   ├── DeadlineError           the time given was not enough (also a TimeoutError)
    │   └── CancelledError          the caller called it off
    ├── SecurityError           someone is not who they should be: find out before going on
    │   ├── PeerRefusedError        a certificate or session is not of this migration
    │   └── HostKeyError            an SSH host key is unknown or has changed
    ├── VerificationError       the copy is not identical: do not boot it; sync again, then look at the disks
    └── DefectError             a bug of this library, or a peer that speaks another language
        └── ProtocolError           bytes that no agent of this version sends

Facts stand in attributes as well as in the message: ``device``, ``offset`` and ``length`` (bytes),
``errno``, and ``remedy``, the sentence that says what to do.
"""

from __future__ import annotations

from typing import ClassVar


class CvmMigrateError(Exception):
    """Base of every error that the library raises on purpose.

    Args:
        message: What happened, to what.
        remedy: What to do about it; printed after the message.
        device: The device, file, host or instance concerned.
        offset: First byte concerned, from the start of the device.
        length: Number of bytes concerned.
        errno: The system's error number, where there is one.
        seconds: The limit that passed, for errors about time.
        code: The cloud's or the agent's own code.
        action: The call of the cloud's API that failed.
        request_id: What the cloud's support asks for.
    """

    default_remedy: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        remedy: str | None = None,
        device: str | None = None,
        offset: int | None = None,
        length: int | None = None,
        errno: int | None = None,
        seconds: float | None = None,
        code: str | None = None,
        action: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy if remedy is not None else self.default_remedy
        self.device = device
        self.offset = offset
        self.length = length
        # OSError's C layout owns the name in classes that also derive from it.
        self.errno = errno
        self.seconds = seconds
        self.code = code
        self.action = action
        self.request_id = request_id

    def __str__(self) -> str:
        """Return the message, where it happened, and the remedy."""
        where: list[str] = []
        if self.device is not None and self.device not in self.message:
            where.append(f"device {self.device}")
        if self.offset is not None:
            where.append(f"offset {self.offset}")
        if self.length is not None:
            where.append(f"length {self.length}")
        text = self.message
        if where:
            text += f" ({', '.join(where)})"
        if self.remedy:
            text += f". {self.remedy}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword arguments when pickled, as errors cross process borders."""
        return (_rebuild, (type(self), self.message, self._facts()))

    def _facts(self) -> dict[str, object]:
        return {
            "remedy": self.remedy,
            "device": self.device,
            "offset": self.offset,
            "length": self.length,
            "errno": self.errno,
            "seconds": self.seconds,
            "code": self.code,
            "action": self.action,
            "request_id": self.request_id,
        }


def _rebuild(
    kind: type[CvmMigrateError], message: str, facts: dict[str, object]
) -> CvmMigrateError:
    error = kind.__new__(kind)
    CvmMigrateError.__init__(error, message)
    for name, value in facts.items():
        setattr(error, name, value)
    return error


class RequestError(CvmMigrateError):
    """Mend the call and call again; nothing was touched."""


class InvalidRequestError(RequestError, ValueError):
    """An argument is wrong."""


class StepOrderError(RequestError):
    """A step was called before another that it needs, or after the end."""


class UnsafeTargetError(RequestError):
    """The target is mounted, in use, too small, or the source itself."""


class NotFoundError(RequestError):
    """There is no such device, instance, file, image or plan."""


class CredentialsError(RequestError):
    """No credentials were found, or the cloud refuses them."""


class ConditionError(CvmMigrateError):
    """Mend what the message names, then repeat the same step."""


class PermissionDeniedError(ConditionError):
    """Rights are missing."""


class UnsupportedError(ConditionError):
    """This kernel, file system, instance type or Python cannot do it."""


class DiskError(ConditionError):
    """A disk refused a range."""


class SourceReadError(DiskError):
    """The source's disk refused to be read."""

    default_remedy = (
        "Look at the disk (kernel log, SMART values); repeat the step when it reads again"
    )


class TargetWriteError(DiskError):
    """The target's disk refused to be written."""

    default_remedy = "Look at the target's disk and its free space, then repeat the step"


class NoRoomError(ConditionError):
    """A file system is full."""

    default_remedy = "Make room there, then repeat the step; nothing that was copied is lost"


class NotConvergingError(ConditionError):
    """The source writes faster than the path carries; the choice is the caller's."""


class QuotaError(ConditionError):
    """A quota or stock of the cloud account is used up."""


class InstanceStateError(ConditionError):
    """The instance is in a state that forbids the call."""


class TransientError(CvmMigrateError):
    """Repeat the same step; what has been copied stays."""


class AgentLostError(TransientError):
    """An agent ended or fell silent."""

    default_remedy = "Repeat the step: it starts a new agent and continues from the checkpoint"


class ConnectionLostError(TransientError):
    """The data path was cut for longer than allowed."""

    default_remedy = "Look at the network between source and target, then repeat the step"


class ThrottledError(TransientError):
    """The cloud asks for slower calls, or another task holds the instance."""


class ServiceError(TransientError):
    """The cloud failed inside, or its reply was lost."""


class FreezeLostError(TransientError):
    """The freeze ended before the final sync did."""

    default_remedy = "Repeat cutover(), with a longer freeze limit if the source can bear it"


class DeadlineError(TransientError, TimeoutError):
    """The time given was not enough."""


class CancelledError(TransientError):
    """The caller called the work off."""


class SecurityError(CvmMigrateError):
    """Someone is not who they should be: find out why before going on."""


class PeerRefusedError(SecurityError):
    """A certificate or session is not of this migration."""


class HostKeyError(SecurityError):
    """An SSH host key is unknown or has changed."""


class VerificationError(CvmMigrateError):
    """The copy is not identical to what was sent: do not boot it."""

    default_remedy = "Do not boot the copy. Run delta_sync() again; if it recurs, suspect the target's disk or memory"


class DefectError(CvmMigrateError):
    """A bug of this library, or a peer that speaks another language."""

    default_remedy = "Please report it with the message and the versions at both ends"


class ProtocolError(DefectError):
    """Bytes that no agent of this version sends."""
