"""One CVM: what it is, and how it is put into "waiting for migration" and brought back.

Waiting for migration is rescue mode: a small Linux of Tencent's runs, reached over SSH as root with a one-time
password, and the instance's own system disk is ``/dev/vda``, not mounted.
"""

from __future__ import annotations

import secrets
import socket
import string
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from typing import Final, Literal

import attrs

from cvm_migrate.cloud._calls import InstanceCalls
from cvm_migrate.cloud._checks import TargetWish, check_instance
from cvm_migrate.cloud._credentials import CredentialSource
from cvm_migrate.cloud._errors import Repeat, repeat_of, state_named
from cvm_migrate.cloud._facts import InstanceFacts
from cvm_migrate.cloud._http import CloudEndpoint
from cvm_migrate.cloud._json import JsonObject
from cvm_migrate.cloud._retry import RetryPolicy
from cvm_migrate.cloud._security_groups import SecurityGroups
from cvm_migrate.cloud._snapshots import Snapshots
from cvm_migrate.cloud._states import (
    STATES,
    Call,
    InstanceState,
    Transition,
    is_moving,
    transition,
)
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import (
    ConditionError,
    CvmMigrateError,
    DeadlineError,
    InstanceStateError,
    InvalidRequestError,
)
from cvm_migrate.model import Finding

StopType = Literal["SOFT", "SOFT_FIRST", "HARD"]

# Entering and leaving take a few minutes; a system that shuts down slowly adds to that. In seconds.
MOVE_SECONDS: Final = 900.0

_SYMBOLS: Final = string.ascii_letters + string.digits
_MAY_BE_IN: Final = (
    "The instance may be in rescue mode now: leave_migration() (or Migration.abort()) brings it "
    "back to its own system"
)
_STILL_IN: Final = (
    "The instance may still be in rescue mode: call leave_migration() again when that is mended"
)


@attrs.frozen
class RescueAccess:
    """How the rescue system is reached over SSH; the password is good for this rescue mode only."""

    host: str
    port: int
    user: str
    password: str = attrs.field(repr=False)


@attrs.frozen
class InstanceHealth:
    """How an instance is doing.

    Attributes:
        facts: What the API says.
        running: Whether it runs its own system, as far as the API knows.
        login_reachable: Whether its login port answers from here; ``None`` if that was not tried.
        problems: What is wrong, one sentence each.
    """

    facts: InstanceFacts
    running: bool
    login_reachable: bool | None
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def one_time_password() -> str:
    """Make a password that Linux and Windows instances take: 24 characters of three classes."""
    while True:
        made = "".join(secrets.choice(_SYMBOLS) for _ in range(24))
        if all(any(map(test, made)) for test in (str.islower, str.isupper, str.isdigit)):
            return made


class CvmInstance(InstanceCalls):
    """A CVM instance; every method can be called again, also by another process.

    Args:
        instance_id: ``ins-...``.
        region: Such as ``ap-guangzhou``.
        credentials: Where the keys come from; ``None`` looks into environment, profile file and CVM role.
        endpoint: Where and how the API is reached.
        policy: When failed calls are repeated.
        poll: How often a state is asked for while waiting, in seconds.
        ssh_host: How the rescue system is reached; ``None`` takes the public address, else the private one.
        ssh_port: Port of the rescue system's SSH server; ``None`` takes the instance's login port, else 22.

    Raises:
        InvalidRequestError: Id or region are none.
    """

    def __init__(
        self,
        instance_id: str,
        *,
        region: str,
        credentials: CredentialSource | None = None,
        endpoint: CloudEndpoint | str | None = None,
        policy: RetryPolicy | None = None,
        poll: float = 3.0,
        ssh_host: str | None = None,
        ssh_port: int | None = None,
    ) -> None:
        super().__init__(
            instance_id,
            region=region,
            credentials=credentials,
            endpoint=endpoint,
            policy=policy,
            poll=poll,
        )
        self._ssh_host = ssh_host
        self._ssh_port = ssh_port
        self._password: str | None = None

    # What it is

    def health(
        self,
        *,
        connect: Callable[[str, int, float], bool] | None = None,
        timeout: float = 10.0,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> InstanceHealth:
        """Tell how the instance is doing: its state, its latest operation, its login port.

        Args:
            connect: Tries host, port and time-out; ``None`` leaves it out. :func:`tcp_answers` does it.
            timeout: For *connect*, in seconds.
            deadline: For the API's answer.
            cancel: Ends the waits.
        """
        facts = self.describe(deadline=deadline, cancel=cancel)
        problems: list[str] = []
        running = facts.state is InstanceState.RUNNING
        if not running:
            problems.append(
                f"{self.instance_id} {facts.meaning} ({facts.state_text}). {STATES[facts.state].advice}"
            )
        if facts.latest.state == "FAILED":
            problems.append(
                f"its latest operation, {facts.latest.name}, failed: {facts.latest.message or 'no reason given'}"
            )
        if facts.restrict_state != "NORMAL":
            problems.append(f"it is {facts.restrict_state}: renew it in the console")
        reachable: bool | None = None
        if connect is not None and running:
            host = self.host_of(facts)
            port = facts.login_port or (3389 if facts.windows else 22)
            reachable = connect(host, port, timeout)
            if not reachable:
                problems.append(
                    f"port {port} of {host} does not answer from here: look at the VNC console and the security group"
                )
        return InstanceHealth(facts, running, reachable, tuple(problems))

    def check(
        self, wish: TargetWish | None = None, *, deadline: Deadline | None = None
    ) -> tuple[Finding, ...]:
        """Tell what can be known of it as a target before anything is touched."""
        return check_instance(self, TargetWish() if wish is None else wish, deadline=deadline)

    @property
    def security_groups(self) -> SecurityGroups:
        """Its security groups."""
        return SecurityGroups(self)

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots that migrations made of its disks."""
        return Snapshots(self)

    @property
    def knows_password(self) -> bool:
        """Whether this object made the password of the rescue system that runs now."""
        return self._password is not None

    # Into "waiting for migration" and back

    def enter_migration(
        self,
        password: str | None = None,
        *,
        renew: bool = False,
        stop_type: StopType = "SOFT_FIRST",
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> RescueAccess:
        """Put the instance into "waiting for migration", and wait until it is.

        The instance's own system is shut down for that. Where the instance waits already, this returns at once if
        the password is known: given, or made by this object before.

        Args:
            password: For root in the rescue system; ``None`` makes one.
            renew: Where it waits already and the password is not known: leave and enter anew (nothing on the
                disks changes).
            stop_type: How its own system is stopped.
            deadline: For all of it; ``None`` is :data:`MOVE_SECONDS`.
            cancel: Ends the waits.

        Raises:
            InstanceStateError: The instance is in a state that forbids it, or waits with an unknown password.
            DeadlineError: It did not get there in time.
            CvmMigrateError: What the API refuses with; if the instance may be in rescue mode by then, the remedy
                says so.
        """
        deadline = self._deadline(deadline)
        facts = self._settled(deadline, cancel)
        _check_password(password, windows=facts.windows)
        known = password or self._password
        if facts.state in {InstanceState.RESCUE_MODE, InstanceState.SERVICE_LIVE_MIGRATE}:
            if known is not None and not renew:
                return self._access(facts, known)
            if facts.state is InstanceState.SERVICE_LIVE_MIGRATE:
                raise InstanceStateError(
                    f"{self.instance_id} was put into waiting for migration by the console",
                    remedy=f"Pass the password of its system there. Or: {STATES[facts.state].advice}",
                    device=self.instance_id,
                )
            if not renew:
                raise InstanceStateError(
                    f"{self.instance_id} waits for migration already, with a password that is not known here",
                    remedy="Call enter_migration(renew=True), which leaves and enters anew and keeps all data, pass "
                    "the password, or call leave_migration()",
                    device=self.instance_id,
                )
            with self._noting(_MAY_BE_IN) as sent:
                sent.maybe = True
                facts = self._exit(facts, deadline, cancel)
        made = password or one_time_password()
        row = self._row(Call.ENTER_RESCUE, facts)
        with self._noting(_MAY_BE_IN) as sent:
            facts = self._move(
                row,
                lambda: self.client.enter_rescue_mode(self.instance_id, made, stop_type),
                facts,
                sent=sent,
                deadline=deadline,
                cancel=cancel,
            )
            self._password = made
            return self._access(facts, made)

    def leave_migration(
        self,
        *,
        start: bool = True,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> InstanceFacts:
        """Bring the instance back to its own system; nothing happens where it is there already.

        Args:
            start: Start it; else it stays as leaving rescue mode leaves it, off.
            deadline: For all of it; ``None`` is :data:`MOVE_SECONDS`.
            cancel: Ends the waits.

        Raises:
            InstanceStateError: The console put it there, or it is being destroyed.
            DeadlineError: It did not get there in time; the remedy says where it may be.
        """
        deadline = self._deadline(deadline)
        with self._noting(_STILL_IN) as sent:
            sent.maybe = True
            facts = self._settled(deadline, cancel)
            if facts.state is InstanceState.RESCUE_MODE:
                facts = self._exit(facts, deadline, cancel)
            sent.maybe = False
        if facts.state is InstanceState.SERVICE_LIVE_MIGRATE:
            raise self._refused(Call.EXIT_RESCUE, facts)
        if start:
            return self.start(deadline=deadline, cancel=cancel)
        return facts

    def start(
        self, *, deadline: Deadline | None = None, cancel: CancelToken | None = None
    ) -> InstanceFacts:
        """Start the instance if it is off, and wait until it runs.

        Raises:
            InstanceStateError: It is in a state that forbids it.
            DeadlineError: It did not run in time.
        """
        deadline = self._deadline(deadline)
        facts = self._settled(deadline, cancel)
        if facts.state is InstanceState.RUNNING:
            return facts
        with self._noting("The instance is off: start() starts it") as sent:
            sent.maybe = facts.state is InstanceState.STOPPED
            return self._move(
                self._row(Call.START, facts),
                lambda: self.client.start_instances(self.instance_id),
                facts,
                deadline=deadline,
                cancel=cancel,
            )

    def stop(
        self,
        *,
        stop_type: StopType = "SOFT_FIRST",
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> InstanceFacts:
        """Stop the instance if it runs, in the mode that goes on being charged for, and wait until it is off.

        Raises:
            InstanceStateError: It is in a state that forbids it.
            DeadlineError: It was not off in time.
        """
        deadline = self._deadline(deadline)
        facts = self._settled(deadline, cancel)
        if facts.state is InstanceState.STOPPED:
            return facts
        return self._move(
            self._row(Call.STOP, facts),
            lambda: self.client.stop_instances(self.instance_id, stop_type),
            facts,
            deadline=deadline,
            cancel=cancel,
        )

    def wait_for(
        self,
        *states: InstanceState,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> InstanceFacts:
        """Wait until the instance is in one of these states, whatever it passes on the way.

        Raises:
            DeadlineError: It was not in time.
        """
        deadline = self._deadline(deadline)
        names = " or ".join(states)
        while True:
            facts = self.describe(deadline=deadline, cancel=cancel)
            if facts.state in states:
                return facts
            self._sleep(facts, f"waiting until {self.instance_id} is {names}", deadline, cancel)

    def host_of(self, facts: InstanceFacts) -> str:
        """Return the address under which it is reached.

        Raises:
            ConditionError: It has none.
        """
        candidates = (self._ssh_host, *facts.public_addresses, *facts.private_addresses)
        for host in candidates:
            if host:
                return host
        raise ConditionError(
            f"{self.instance_id} has no address",
            remedy="Bind a public address to it, or pass ssh_host=",
            device=self.instance_id,
        )

    # Inside

    def _deadline(self, deadline: Deadline | None) -> Deadline:
        return Deadline(MOVE_SECONDS, clock=self.policy.clock) if deadline is None else deadline

    def _access(self, facts: InstanceFacts, password: str) -> RescueAccess:
        port = self._ssh_port
        if port is None:
            # The rescue system is a Linux, whatever the instance's own system is.
            port = 22 if facts.windows or facts.login_port is None else facts.login_port
        return RescueAccess(self.host_of(facts), port, "root", password)

    def _settled(self, deadline: Deadline, cancel: CancelToken | None) -> InstanceFacts:
        """Wait until the state is none that ends by itself."""
        while True:
            facts = self.describe(deadline=deadline, cancel=cancel)
            if not is_moving(facts.state):
                return facts
            self._sleep(
                facts,
                f"waiting until {self.instance_id} is no longer {facts.state}",
                deadline,
                cancel,
            )

    def _exit(
        self, facts: InstanceFacts, deadline: Deadline, cancel: CancelToken | None
    ) -> InstanceFacts:
        self._password = None
        return self._move(
            self._row(Call.EXIT_RESCUE, facts),
            lambda: self.client.exit_rescue_mode(self.instance_id),
            facts,
            deadline=deadline,
            cancel=cancel,
        )

    def _row(self, call: Call, facts: InstanceFacts) -> Transition:
        row = transition(call, facts.state)
        if row is None:
            raise self._refused(call, facts)
        return row

    def _refused(self, call: Call, facts: InstanceFacts) -> InstanceStateError:
        return InstanceStateError(
            f"{self.instance_id} {facts.meaning} ({facts.state_text}), which forbids {call}",
            remedy=STATES[facts.state].advice,
            device=self.instance_id,
            action=call,
        )

    @contextmanager
    def _noting(self, note: str) -> Generator[_Sent]:
        """Add to an error's remedy what state the instance may have been left in, if it may."""
        sent = _Sent()
        try:
            yield sent
        except CvmMigrateError as error:
            if sent.maybe and note not in (error.remedy or ""):
                error.remedy = f"{error.remedy.rstrip('. ')}. {note}" if error.remedy else note
            raise

    def _move(
        self,
        row: Transition,
        call: Callable[[], JsonObject],
        facts: InstanceFacts,
        *,
        deadline: Deadline,
        cancel: CancelToken | None,
        sent: _Sent | None = None,
    ) -> InstanceFacts:
        """Make the call of a row of the table, and wait for its end."""
        before = facts.latest.request_id
        there = {row.through, row.end}
        sent = _Sent() if sent is None else sent

        def once() -> JsonObject:
            try:
                answer = call()
            except CvmMigrateError as error:
                sent.maybe = sent.maybe or repeat_of(error) is Repeat.LOOK
                raise
            sent.maybe = True
            return answer

        def look() -> JsonObject | None:
            now = self.describe(deadline=deadline, cancel=cancel)
            begun = now.latest.name == row.call and now.latest.request_id != before
            if now.state in there or begun:
                return {"RequestId": now.latest.request_id if begun else None}
            return None

        def settled(error: CvmMigrateError) -> JsonObject | None:
            return {} if state_named(error.code or "") in there else None

        try:
            answer = self.change(
                once,
                doing=f"{row.call} of {self.instance_id}",
                look=look,
                settled=settled,
                deadline=deadline,
                cancel=cancel,
            )
        except InstanceStateError as error:
            # Someone else was faster. With EnterRescueMode it is not the same: the password is theirs.
            if row.call is Call.ENTER_RESCUE or state_named(error.code or "") not in there:
                raise
            answer = {}
        return self._arrive(row, before, answer.get("RequestId"), deadline=deadline, cancel=cancel)

    def _arrive(
        self,
        row: Transition,
        before: str | None,
        request_id: str | None,
        *,
        deadline: Deadline,
        cancel: CancelToken | None,
    ) -> InstanceFacts:
        passing: Collection[InstanceState] = {row.start, row.through}
        if row.call is Call.ENTER_RESCUE:
            # The instance is stopped on the way.
            passing = {*passing, InstanceState.STOPPING, InstanceState.STOPPED}
        doing = f"waiting until {self.instance_id} is {row.end} after {row.call}"
        while True:
            facts = self.describe(deadline=deadline, cancel=cancel)
            if facts.state is row.end:
                return facts
            latest = facts.latest
            ours = (
                latest.request_id == request_id
                if request_id is not None
                else latest.request_id != before and latest.name == row.call
            )
            if latest.state == "FAILED" and ours and facts.state is not row.through:
                raise InstanceStateError(
                    f"{row.call} of {self.instance_id} was taken, and then failed: "
                    f"{latest.message or 'no reason given'}; the instance {facts.meaning} ({facts.state_text})",
                    remedy="Repeat the step; if it recurs, give Tencent's support the request id",
                    device=self.instance_id,
                    action=row.call,
                    request_id=latest.request_id,
                )
            if facts.state not in passing:
                raise InstanceStateError(
                    f"after {row.call}, {self.instance_id} {facts.meaning} ({facts.state_text}) instead of being "
                    f"{row.end}",
                    remedy=STATES[facts.state].advice,
                    device=self.instance_id,
                    action=row.call,
                    request_id=request_id,
                )
            self._sleep(facts, doing, deadline, cancel)

    def _sleep(
        self, facts: InstanceFacts, doing: str, deadline: Deadline, cancel: CancelToken | None
    ) -> None:
        try:
            self.pause(doing, deadline, cancel)
        except DeadlineError as error:
            error.message = f"{error.message}; it {facts.meaning} ({facts.state_text})"
            error.device = self.instance_id
            error.remedy = "Look at the instance in the console; repeat the step, with more time if it needs it"
            raise


class _Sent:
    """Whether a call may have been carried out."""

    maybe = False


def tcp_answers(host: str, port: int, timeout: float) -> bool:
    """Whether a TCP connection can be made from here, within *timeout* seconds."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True


def _is_special(character: str) -> bool:
    return not character.isalnum()


def _check_password(password: str | None, *, windows: bool) -> None:
    if password is None:
        return
    least = 12 if windows else 8
    classes = sum(
        any(map(test, password)) for test in (str.islower, str.isupper, str.isdigit, _is_special)
    )
    if not least <= len(password) <= 30 or classes < (3 if windows else 2):
        raise InvalidRequestError(
            "the password for the rescue system is not one the API takes",
            remedy=f"Give {least} to 30 characters of at least {3 if windows else 2} classes (lower case, upper case, "
            "digits, others), or none: one is made then",
        )
