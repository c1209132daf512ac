"""How a migration is done: one frozen value, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import attrs

from cvm_migrate.errors import InvalidRequestError
from cvm_migrate.units import GiB, KiB, MiB, format_size

Validator = Callable[[object, "attrs.Attribute[Any]", Any], None]


def _between(low: float, high: float) -> Validator:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ANN401 - whatever the caller gave
        # bool is an int to Python; nobody means it.
        if type(value) not in {int, float} or not low <= value <= high:
            raise InvalidRequestError(
                f"option {attribute.name} is {value!r}, but must lie between {low:g} and {high:g}"
            )

    return check


def _whole(low: int, high: int) -> Validator:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ANN401
        if type(value) is not int or not low <= value <= high:
            raise InvalidRequestError(
                f"option {attribute.name} is {value!r}, but must be a whole number from {low} to {high}"
            )

    return check


def _rate(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ANN401
    if value is not None and (type(value) is not int or value < 64 * KiB):
        raise InvalidRequestError(
            f"option {attribute.name} is {value!r}, but must be a whole number of bytes per second, at least"
            f" {64 * KiB} ({format_size(64 * KiB)}), or None for no limit"
        )


def _truth(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidRequestError(
            f"option {attribute.name} is {value!r}, but must be True or False"
        )


def _one_of(*names: str) -> Validator:
    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in names:
            raise InvalidRequestError(
                f"option {attribute.name} is {value!r}, but must be one of {', '.join(names)}"
            )

    return check


def _power_of_two(low: int, high: int, *, optional: bool = False) -> Validator:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:  # noqa: ANN401
        if optional and value is None:
            return
        if type(value) is not int or not low <= value <= high or value & (value - 1):
            raise InvalidRequestError(
                f"option {attribute.name} is {value!r}, but must be a power of two from {low} to {high}"
            )

    return check


def _words(value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - whatever the caller gave; checked as the field's value
    # A text is a sequence of letters to Python, and nobody means them.
    if isinstance(value, str):
        return (value,)
    try:
        words: tuple[Any, ...] = tuple(value)
    except TypeError:
        return (value,)
    return words


def _rungs(_: object, attribute: attrs.Attribute[Any], value: tuple[object, ...]) -> None:
    for name in value:
        if name not in ("ebpf", "tracefs"):
            raise InvalidRequestError(
                f"option {attribute.name} names {name!r}; the rungs are ebpf and tracefs"
            )


@attrs.frozen(kw_only=True)
class Options:
    """Limits and choices of a migration. Sizes in bytes, times in seconds.

    Attributes:
        max_downtime: Longest acceptable freeze of the source.
        freeze_limit: After this time a freeze ends by itself, whatever happens.
        streams: TLS connections of the data path.
        chunk: What is read, digested and sent as one piece.
        codec: ``auto`` measures what pays; ``raw``, ``zlib`` and ``zstd`` are fixed choices.
        level: Of the codec.
        bandwidth: Bytes per second on the network; ``None``: no limit.
        read_limit: Bytes per second read from the source's disks; ``None``: no limit.
        rungs: Ways to track changes, best first; none of them: digests are compared in every pass.
        block: Granularity of tracking; ``None``: by the size of the disk.
        max_passes: Delta passes after which :meth:`~cvm_migrate.migration.Migration.run` gives up.
        max_bytes: The same in bytes, as a multiple of the disks' size.
        prove: Which comparison a cutover makes beside reading back what was sent: ``running`` compares the whole
            disks before the freeze, ``frozen`` within it, ``sent`` not at all.
        patience: How long a cut data path is mended before a step fails.
        compare: The target may already hold the data: compare before the first full sync sends.
        batch: What is sent between two confirmations by reading back.
        attempts: How often ``run`` tries a step that fails with a
            :class:`~cvm_migrate.errors.TransientError`.
        data_port: Where the target listens; 0: any free port.
        route: How data goes from source to target: ``direct`` over the network, ``ssh`` through SSH by way of the
            caller's machine, or ``auto``: directly where the target's port can be reached, else through SSH.
    """

    max_downtime: float = attrs.field(default=5.0, validator=_between(0.05, 86_400))
    freeze_limit: float = attrs.field(default=30.0, validator=_between(1, 3600))
    streams: int = attrs.field(default=2, validator=_whole(1, 16))
    chunk: int = attrs.field(default=MiB, validator=_power_of_two(64 * KiB, 4 * MiB))
    codec: Literal["auto", "raw", "zlib", "zstd"] = attrs.field(
        default="auto", validator=_one_of("auto", "raw", "zlib", "zstd")
    )
    level: int = attrs.field(default=1, validator=_whole(1, 9))
    bandwidth: int | None = attrs.field(default=None, validator=_rate)
    read_limit: int | None = attrs.field(default=None, validator=_rate)
    rungs: tuple[str, ...] = attrs.field(
        default=("ebpf", "tracefs"), converter=_words, validator=_rungs
    )
    block: int | None = attrs.field(
        default=None, validator=_power_of_two(4 * KiB, 4 * MiB, optional=True)
    )
    max_passes: int = attrs.field(default=20, validator=_whole(1, 10_000))
    max_bytes: float = attrs.field(default=3.0, validator=_between(0.1, 1000))
    prove: Literal["running", "frozen", "sent"] = attrs.field(
        default="running", validator=_one_of("running", "frozen", "sent")
    )
    patience: float = attrs.field(default=120.0, validator=_between(0, 86_400))
    compare: bool = attrs.field(default=False, validator=_truth)
    batch: int = attrs.field(default=4 * GiB, validator=_whole(4 * MiB, 16 * GiB))
    attempts: int = attrs.field(default=3, validator=_whole(1, 1000))
    data_port: int = attrs.field(default=0, validator=_whole(0, 65_535))
    route: Literal["auto", "direct", "ssh"] = attrs.field(
        default="auto", validator=_one_of("auto", "direct", "ssh")
    )
