"""Arguments in, a call of the public API, an exit code out."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import attrs

from cvm_migrate import __version__
from cvm_migrate.cli._demo import demo
from cvm_migrate.cli._exit_codes import ExitCode, exit_code
from cvm_migrate.cli._fleet import FleetDisplay, fleet
from cvm_migrate.cli._given import complete, keep
from cvm_migrate.cli._progress import ProgressDisplay
from cvm_migrate.errors import CancelledError, CvmMigrateError, DefectError, InvalidRequestError
from cvm_migrate.events import Event, Observer
from cvm_migrate.migration import (
    Endpoint,
    Migration,
    Options,
    Result,
    SshHost,
    parse_cvm,
    parse_endpoint,
)
from cvm_migrate.units import parse_size

_PLACES: Final = "local:/dev/sdb, image:/path/file.img, ssh://user@host/dev/sda"

_INTERRUPTED: Final = CancelledError(
    "interrupted", remedy="Repeat the same command to continue from the checkpoint"
)
_NOTHING_KEPT: Final = CancelledError(
    "interrupted",
    remedy="Repeat the same command; it begins from the start, as there is no state directory",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; ``None`` takes them from the process.

    Returns:
        The exit code (``docs/reference/command-line.md``).
    """
    _complete_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parsed = _parser().parse_args(words)
    except _UsageError as error:
        # What was asked for is not known yet, as the words could not be read.
        return _fail(error, as_json="--json" in words)
    display = ProgressDisplay(sys.stderr)
    with _interruptible():
        try:
            _refuse_report(parsed)
            result, code = _COMMANDS[parsed.command](parsed, _nothing if parsed.quiet else display)
        except _HalfWayError as left:
            display.close()
            return _fail(left.error, as_json=parsed.json, half_way=left.how)
        except CvmMigrateError as error:
            display.close()
            return _fail(error, as_json=parsed.json)
        except KeyboardInterrupt:
            display.close()
            kept = getattr(parsed, "state", None) is not None
            return _fail(_INTERRUPTED if kept else _NOTHING_KEPT, as_json=parsed.json)
        except Exception as error:  # noqa: BLE001 - whoever reads the output learns of a defect too
            display.close()
            with contextlib.suppress(OSError):
                traceback.print_exc()
            return _fail(_defect(error), as_json=parsed.json)
    display.close()
    try:
        print(json.dumps(result.to_dict(), indent=2) if parsed.json else result.to_text())
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone; the work is done all the same.
        pass
    except OSError as error:
        _say(f"cvm-migrate: all is done, but the result could not be written: {error}")
    return code


class _HalfWayError(Exception):
    """Something failed, and an instance was left half way.

    Args:
        error: What failed.
        how: In which state, and what leads out of it.
    """

    def __init__(self, error: CvmMigrateError, how: str) -> None:
        super().__init__(error, how)
        self.error = error
        self.how = how


@contextlib.contextmanager
def _minding(migration: Migration) -> Generator[None]:
    """Have what fails say how the instance was left."""
    try:
        yield
    except (CvmMigrateError, KeyboardInterrupt) as error:
        how = migration.half_way
        if how is None:
            raise
        failed = error if isinstance(error, CvmMigrateError) else _INTERRUPTED
        raise _HalfWayError(failed, how) from error


class _UsageError(InvalidRequestError):
    """The words of the command line are wrong."""


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong instead of ending the process, so that it can be a document too."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise _UsageError(message, remedy=f"See {self.prog} --help")


def _fail(error: CvmMigrateError, *, as_json: bool, half_way: str | None = None) -> ExitCode:
    _print_error(error, as_json=as_json, half_way=half_way)
    if error in {_INTERRUPTED, _NOTHING_KEPT}:
        return ExitCode.INTERRUPTED
    return exit_code(error, half_way=half_way is not None)


def _defect(error: Exception) -> DefectError:
    return DefectError(
        f"{type(error).__name__}: {error}",
        remedy="This is a bug of cvm_migrate: report it with the lines above",
    )


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _complete_streams() -> None:
    """Have standard streams that can be written to.

    A closed descriptor 0, 1 or 2 would be given to the next file that is opened, such as the checkpoint. And names
    of files that the terminal's encoding lacks must not end the program.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free descriptor is this one; children have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 - its only argument
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nothing(event: Event) -> None:
    """Show nothing."""


@contextlib.contextmanager
def _interruptible() -> Generator[None]:
    """Let SIGTERM and a closed terminal end the work as Control-C does: with everything released."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    names = ("SIGTERM", "SIGHUP")
    for name in names:
        if hasattr(signal, name):
            number = signal.Signals[name]
            # nohup's wish is kept.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_error(error: CvmMigrateError, *, as_json: bool, half_way: str | None = None) -> None:
    if as_json:
        facts = {
            "type": "InvalidRequestError"
            if isinstance(error, _UsageError)
            else type(error).__name__,
            "message": error.message,
            "remedy": error.remedy,
            "device": error.device,
            "offset": error.offset,
            "length": error.length,
            "errno": error.errno,
            "seconds": error.seconds,
            "code": error.code,
            "action": error.action,
            "request_id": error.request_id,
            "half_way": half_way,
        }
        with contextlib.suppress(OSError):
            print(json.dumps({"error": facts}, indent=2), flush=True)
    _say(f"cvm-migrate: {error}")
    if half_way is not None:
        _say(f"cvm-migrate: half way: {half_way} (cvm-migrate abort --state DIR)")


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _folder(text: str) -> Path:
    # An empty variable of a script would be the current folder.
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cvm-migrate",
        description="Moves a running server onto a Tencent Cloud CVM without stopping its services.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cvm-migrate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    output = _Parser(add_help=False)
    output.add_argument("--json", action="store_true", help="one JSON document on standard output")
    output.add_argument("--quiet", action="store_true", help="no progress")

    ends = _Parser(add_help=False)
    ends.add_argument("--source", required=True, metavar="ENDPOINT", help=_PLACES)
    ends.add_argument(
        "--target", required=True, metavar="ENDPOINT", help="as the source, or cvm:REGION/INSTANCE"
    )

    how = _Parser(add_help=False)
    how.add_argument("--state", type=_folder, metavar="DIR", help="where the checkpoint lies")
    how.add_argument(
        "--max-downtime", type=float, metavar="SECONDS", help="longest freeze of the source (5)"
    )
    how.add_argument(
        "--freeze-limit", type=float, metavar="SECONDS", help="when a freeze ends by itself (30)"
    )
    how.add_argument("--bandwidth", type=_size, metavar="RATE", help="bytes a second, as 50M")
    how.add_argument("--read-limit", type=_size, metavar="RATE", help="of the source's disks")
    how.add_argument("--streams", type=int, metavar="N", help="connections for the data (2)")
    how.add_argument("--codec", metavar="NAME", help="auto, raw, zlib, zstd")
    how.add_argument("--prove", metavar="WHAT", help="running, frozen, sent")
    how.add_argument("--rungs", metavar="NAMES", help="ebpf,tracefs; empty: digests only")
    how.add_argument("--data-port", type=int, metavar="PORT", help="where the target listens")
    how.add_argument("--route", metavar="WAY", help="of the data: auto, direct, ssh")
    how.add_argument("--ssh-config", type=Path, metavar="FILE", help="instead of ~/.ssh/config")
    how.add_argument("--identity", type=Path, metavar="FILE", help="private key for ssh")
    how.add_argument("--force", action="store_true", help="cut over whatever the downtime")
    how.add_argument("--report", type=Path, metavar="FILE", help="write the report as HTML")
    how.add_argument("--dry-run", action="store_true", help="check, print the plan, stop")

    commands.add_parser("check", parents=[ends, how, output], help="is a migration possible?")
    commands.add_parser("run", parents=[ends, how, output], help="all steps")
    capture = commands.add_parser(
        "capture", parents=[how, output], help="a running disk into an image"
    )
    capture.add_argument("source", metavar="SOURCE", help=_PLACES)
    capture.add_argument(
        "image", metavar="IMAGE", help="path of a file, which is made or overwritten"
    )
    restore = commands.add_parser("restore", parents=[how, output], help="an image onto a disk")
    restore.add_argument("image", metavar="IMAGE", help="path of a file")
    restore.add_argument("target", metavar="TARGET", help=f"{_PLACES}, cvm:REGION/INSTANCE")
    abort = commands.add_parser(
        "abort", parents=[how, output], help="give up, put the target back"
    )
    abort.add_argument("--source", metavar="ENDPOINT", help="if the state does not know it")
    abort.add_argument("--target", metavar="ENDPOINT")
    many = commands.add_parser("fleet", parents=[output], help="all migrations of a plan file")
    many.add_argument("plans", type=Path, metavar="PLANFILE", help="TOML or JSON")
    many.add_argument("--state", type=_folder, metavar="DIR", help="where all checkpoints lie")
    many.add_argument("--workers", type=int, default=4, metavar="N", help="at the same time")
    many.add_argument("--report", type=Path, metavar="FILE", help="write the report as HTML")
    many.add_argument("--dry-run", action="store_true", help="check all, stop")
    show = commands.add_parser("demo", parents=[output], help="move a busy disk and prove it")
    show.add_argument("--size", type=_size, default=512 << 20, metavar="SIZE", help="of the disk")
    show.add_argument("--no-root", action="store_true", help="as if not root: image file, digests")
    return parser


def _endpoint(text: str, parsed: argparse.Namespace) -> Endpoint:
    cvm = functools.partial(parse_cvm, config=parsed.ssh_config)
    endpoint = parse_endpoint(text, more={"cvm": cvm})
    if isinstance(endpoint, SshHost):
        return attrs.evolve(endpoint, config=parsed.ssh_config, identity=parsed.identity)
    return endpoint


def _image(path: str) -> str:
    return path if path.startswith("image:") else f"image:{Path(path).absolute()}"


def _options(parsed: argparse.Namespace) -> Options:
    names = (
        "max_downtime",
        "freeze_limit",
        "bandwidth",
        "read_limit",
        "streams",
        "codec",
        "prove",
        "data_port",
        "route",
    )
    given = {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    if parsed.rungs is not None:
        given["rungs"] = tuple(name for name in parsed.rungs.split(",") if name)
    return Options(**given)


def _migration(parsed: argparse.Namespace, observer: Observer) -> Migration:
    source, target = parsed.source, parsed.target
    return Migration(
        source=_endpoint(source, parsed),
        target=_endpoint(target, parsed),
        state=parsed.state,
        options=_options(parsed),
        observer=observer,
    )


def _check(parsed: argparse.Namespace, observer: Observer) -> tuple[Result, int]:
    with _migration(parsed, observer) as migration:
        report = migration.check()
    _write_report(parsed, report)
    return report, ExitCode.DONE if report.possible else ExitCode.NOT_POSSIBLE


def _run(parsed: argparse.Namespace, observer: Observer) -> tuple[Result, int]:
    if parsed.dry_run:
        return _check(parsed, observer)
    if parsed.state is None and parsed.target.startswith("cvm:"):
        raise InvalidRequestError(
            "a migration to a CVM needs a state directory: without it nobody could go on, or give up, if this process"
            " ended while the instance waits for migration",
            remedy="Give --state DIR, the same at each call",
        )
    with _migration(parsed, observer) as migration, _minding(migration):
        if parsed.state is not None:
            keep(parsed.state, parsed)
        report = migration.run(force=parsed.force)
    _write_report(parsed, report)
    return report, ExitCode.DONE


def _capture(parsed: argparse.Namespace, observer: Observer) -> tuple[Result, int]:
    parsed.target = _image(parsed.image)
    return _run(parsed, observer)


def _restore(parsed: argparse.Namespace, observer: Observer) -> tuple[Result, int]:
    parsed.source = _image(parsed.image)
    return _run(parsed, observer)


def _abort(parsed: argparse.Namespace, observer: Observer) -> tuple[Result, int]:
    if parsed.state is None:
        raise InvalidRequestError(
            "abort needs the state directory of the migration",
            remedy="Give the same --state as when it was run",
        )
    complete(parsed.state, parsed)
    with _migration(parsed, observer) as migration, _minding(migration):
        return migration.abort(), ExitCode.DONE


def _fleet(parsed: argparse.Namespace, observer: Observer) -> tuple[Result, int]:
    del observer  # it shows one migration
    report, code = fleet(
        parsed.plans,
        state=parsed.state,
        workers=parsed.workers,
        dry_run=parsed.dry_run,
        display=None if parsed.quiet else FleetDisplay(sys.stderr),
    )
    _write_report(parsed, report)
    for outcome in report.half_way:
        state = parsed.state / outcome.name
        _say(
            f"cvm-migrate: {outcome.name}: half way: {outcome.half_way} (the same command, or cvm-migrate abort"
            f" --source S --target T --state {state})"
        )
    return report, code


def _demo(parsed: argparse.Namespace, observer: Observer) -> tuple[Result, int]:
    shown = demo(size=parsed.size, observer=observer, without_root=parsed.no_root)
    return shown, ExitCode.DONE if shown.proven else ExitCode.NOT_IDENTICAL


def _refuse_report(parsed: argparse.Namespace) -> None:
    """Refuse now what would be found at the end of a long work."""
    file: Path | None = getattr(parsed, "report", None)
    if file is None:
        return
    if not file.absolute().parent.is_dir():
        raise InvalidRequestError(
            f"there is no folder {file.absolute().parent} for the report",
            remedy="Make it, or name another file",
        )
    if file.is_dir():
        raise InvalidRequestError(
            f"{file} is a folder, where the report should be written",
            remedy="Name a file in it",
        )


def _write_report(parsed: argparse.Namespace, report: Result) -> None:
    if parsed.report is None:
        return
    try:
        parsed.report.write_text(report.to_html(), encoding="utf-8")
    except OSError as error:
        _say(f"cvm-migrate: the report could not be written: {error}")


_COMMANDS = {
    "check": _check,
    "run": _run,
    "capture": _capture,
    "restore": _restore,
    "abort": _abort,
    "fleet": _fleet,
    "demo": _demo,
}
