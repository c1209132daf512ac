"""The way of the data, tried and measured in the real direction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from cvm_migrate.errors import AgentLostError, CancelledError, CvmMigrateError
from cvm_migrate.migration._cvm import CvmTarget
from cvm_migrate.migration._job import Job
from cvm_migrate.migration._routes import Route, SshRoute
from cvm_migrate.model import Measured, Reach, Severity
from cvm_migrate.transport import Identities, mint_identities
from cvm_migrate.units import format_rate, format_seconds, format_size

_SECONDS: Final = 1.0
# Within one machine there is little to learn, and it takes the processors from others.
_SECONDS_INSIDE: Final = 0.25
_REACH_SECONDS: Final = 5.0
# A pump that was reached has so long for TLS.
_CONNECT_SECONDS: Final = 10.0

_REMEDIES: Final = {
    "refused": "Name an address of the target itself with data_host=, or have the firewall on the way let {port} pass",
    "timeout": "Allow {port} from the source in the target's security group and firewall, choose another with"
    " data_port=, or name another address with data_host=",
    "unreachable": "Name an address of the target that the source has a route to, with data_host=",
    "unknown-name": "Name the target by an address, or a name that the source can resolve, with data_host=",
}


class PathCheck:
    """Tries the ways from source to target, and measures the one that data will take.

    Args:
        job: The migration.
        tell: Takes findings.
    """

    def __init__(self, job: Job, tell: Callable[[Severity, str, str, str], object]) -> None:
        self._job = job
        self._ends = job.ends
        self._tell = tell

    def try_ways(self) -> float | None:
        """Start pumps without disks, connect and measure them, and end them; both agents run.

        Returns:
            Bytes per second of the way that data will take; ``None`` if there is none.

        Raises:
            CancelledError: The caller called the step off.
        """
        rate = None
        try:
            # Once they are there, the migration's own pumps have its port.
            rate = self._measure_pumps() if self._ends.is_open else self._try()
        except CancelledError:
            raise
        except CvmMigrateError as error:
            self._tell(Severity.BLOCKER, error.message, "", error.remedy or "")
        if rate is None:
            # An agent may have ended.
            self._ends.suspect()
        return rate

    def try_pumps(self) -> None:
        """Measure the pumps that are connected already.

        Raises:
            AgentLostError: An agent ended.
            CancelledError: The caller called the step off.
        """
        try:
            self._measure_pumps()
        except (AgentLostError, CancelledError):
            raise
        except CvmMigrateError as error:
            # Who needs the path waits for it, as long as its patience lasts.
            self._tell(
                Severity.WARNING,
                "the way of the data could not be measured",
                error.message,
                error.remedy or "",
            )

    def _measure_pumps(self) -> float:
        route = self._ends.route
        measured = self._measure(self._ends.sender)
        if isinstance(route, SshRoute):
            self._found(self._through_ssh(), measured)
        elif route is not None:
            self._found(f"to {route.host}, {self._port(route.port)},", measured)
        return measured.rate

    def _try(self) -> float | None:
        identities = mint_identities()
        ends = self._ends
        listening = ends.listen({}, identities)
        try:
            reason, remedy = "", ""
            route = ends.direct_route(listening.port)
            if self._job.options.route == "ssh":
                pass
            elif route is None:
                reason = "no address is known under which the source finds the target"
                remedy = "Give the target data_host=, an address of it that the source can reach"
            else:
                found = self._directly(route, identities)
                if isinstance(found, Measured):
                    port = self._port(route.port)
                    self._found(f"to {route.host}, {port},", found)
                    return found.rate
                reason, remedy = found
            if not ends.ssh_leads:
                self._no_way(route, reason, remedy)
                return None
            return self._by_ssh(listening.port, identities, reason, remedy)
        finally:
            # Where the agent is lost, so is the pump.
            with contextlib.suppress(CvmMigrateError):
                ends.target_agent.disconnect(listening.pump)

    def _port(self, port: int) -> str:
        endpoint = self._job.target
        fixed = (
            endpoint.data_port if endpoint.data_port is not None else self._job.options.data_port
        )
        return f"port {port}" if fixed else "any free port"

    def _directly(self, route: Route, identities: Identities) -> Measured | tuple[str, str]:
        """Return what the direct way carries, or why it cannot be taken and what to do."""
        reach = self._ends.source_agent.reach(route.host, route.port, timeout=_REACH_SECONDS)
        if reach.outcome != "open":
            return self._words(reach, route), _remedy(reach, self._port(route.port))
        try:
            return self._connect(route, identities)
        except CancelledError:
            raise
        except CvmMigrateError as error:
            if isinstance(error, AgentLostError):
                raise
            place = _place(route.host, route.port)
            reason = f"{place} takes connections from the source, but the data's do not get through: {error.message}"
            mtu = "not known" if reach.mtu is None else str(reach.mtu)
            return reason, (
                "See that this address is the target's own, that nothing on the way breaks TLS, and that packets of the"
                f" path's MTU, {mtu} at the source, get through"
            )

    def _by_ssh(self, port: int, identities: Identities, reason: str, remedy: str) -> float | None:
        source, target = self._job.source.ssh, self._job.target.ssh
        try:
            with contextlib.closing(SshRoute(port, source=source, target=target)) as route:
                try:
                    measured = self._connect(route, identities)
                except CancelledError:
                    raise
                except CvmMigrateError:
                    route.check()
                    raise
        except (CancelledError, AgentLostError):
            raise
        except CvmMigrateError as error:
            self._tell(
                Severity.BLOCKER,
                f"no data can go from {self._job.source.description} to {self._job.target.description}",
                "; ".join(filter(None, (reason, f"through SSH: {error.message}"))),
                ". For SSH: ".join(filter(None, (remedy, error.remedy))),
            )
            return None
        if reason:
            self._tell(Severity.WARNING, f"data will go {self._through_ssh()}", reason, remedy)
        self._found(self._through_ssh(), measured)
        return measured.rate

    def _through_ssh(self) -> str:
        detour = self._job.source.ssh is not None and self._job.target.ssh is not None
        return "through SSH" + (
            " by way of this machine, which carries all of it" if detour else ""
        )

    def _no_way(self, route: Route | None, reason: str, remedy: str) -> None:
        where = self._job.target.description if route is None else route.host
        self._tell(Severity.BLOCKER, f"the source cannot send data to {where}", reason, remedy)

    def _connect(self, route: Route, identities: Identities) -> Measured:
        pump = self._ends.dial(route, identities, {}, within=_CONNECT_SECONDS)
        try:
            return self._measure(pump)
        finally:
            with contextlib.suppress(CvmMigrateError):
                self._ends.source_agent.disconnect(pump)

    def _measure(self, pump: int) -> Measured:
        return self._ends.source_agent.measure(
            pump,
            seconds=_SECONDS_INSIDE if self._ends.same_host else _SECONDS,
            bandwidth=self._job.options.bandwidth,
            cancel=self._job.cancel,
        )

    def _found(self, where: str, measured: Measured) -> None:
        parts = [_milliseconds(measured.rtt)]
        if measured.mtu is not None:
            parts.append(f"MTU {measured.mtu}")
        if measured.tls_version is not None:
            parts.append(measured.tls_version)
        evidence = (
            f"{format_size(measured.arrived)} of noise in {format_seconds(measured.seconds)}"
        )
        evidence += f" over {int(self._job.options.streams)} connections"
        if measured.mss is not None:
            evidence += f", segments of {measured.mss} bytes"
        limit = self._job.options.bandwidth
        if limit is not None:
            evidence += f", not more than {format_rate(limit)} allowed"
        self._tell(
            Severity.INFO,
            f"data goes {where} at {format_rate(measured.rate)}, {', '.join(parts)}",
            evidence,
            "",
        )

    def _words(self, reach: Reach, route: Route) -> str:
        place = _place(route.host, route.port)
        if reach.address is not None and reach.address != route.host:
            place += f" ({reach.address})"
        seconds = format_seconds(reach.seconds)
        return {
            "refused": f"{place} refuses the source's connection after {seconds}, though the target listens",
            "timeout": f"{place} gives the source no answer within {seconds}",
            "unreachable": f"the source cannot reach {place}: {reach.message}",
            "unknown-name": f"the source does not know the name {route.host}: {reach.message}",
        }.get(reach.outcome, f"{place}: {reach.outcome}")

    # Where the target has no agent yet.

    def try_port(self, target: CvmTarget) -> None:
        """See whether the source's packets get to a target on which nobody listens yet.

        Raises:
            CancelledError: The caller called the step off.
        """
        if self._job.options.route == "ssh":
            return
        try:
            self._try_port(target)
        except CancelledError:
            raise
        except CvmMigrateError as error:
            if isinstance(error, AgentLostError):
                self._ends.suspect()
            self._tell(
                Severity.WARNING,
                "it could not be tried whether the source reaches the target's data port",
                error.message,
                error.remedy or "",
            )

    def _try_port(self, target: CvmTarget) -> None:
        host, port = target.data_address(), target.data_port
        if host is None:
            return
        reach = self._ends.source_agent.reach(host, port, timeout=_REACH_SECONDS)
        place = _place(host, port)
        latency = _milliseconds(reach.seconds)
        if reach.outcome == "open":
            mtu = "" if reach.mtu is None else f", MTU {reach.mtu}"
            self._tell(
                Severity.INFO,
                f"{place} takes connections from the source, where prepare() will measure it",
                f"{latency}{mtu}; what listens there now is the instance's own",
                "",
            )
        elif reach.outcome == "refused":
            self._tell(
                Severity.INFO,
                f"{place} answers the source; nobody listens there before prepare(), which will measure it",
                f"{reach.message} after {latency}",
                "",
            )
        else:
            expected = reach.outcome == "timeout" and target.opens_port
            route = self._job.options.route
            self._tell(
                Severity.INFO if expected else Severity.WARNING,
                f"{place} gives the source no answer before prepare()"
                if reach.outcome == "timeout"
                else f"the source cannot reach {place}",
                f"{reach.outcome}: {reach.message}",
                (
                    "prepare() opens it in the security group, and the rescue system has no firewall; if that is not"
                    " enough, "
                    if expected
                    else f"{_remedy(reach, f'port {port}')}; otherwise "
                )
                + ("data goes through SSH" if route == "auto" else "prepare() fails"),
            )


def _place(host: str, port: int) -> str:
    return f"port {port} of {host}"


def _remedy(reach: Reach, port: str) -> str:
    if port == "any free port":
        port = "a port chosen with data_port="
    return _REMEDIES.get(reach.outcome, "").format(port=port)


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.2g} ms" if value < 9.5 else f"{value:.0f} ms"
