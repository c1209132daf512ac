"""Where the keys come from: arguments, environment, profile file, or the role of the CVM the caller runs on.

Secrets appear in no ``repr``, no message and no log.
"""

from __future__ import annotations

import configparser
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from cvm_migrate.errors import CredentialsError, CvmMigrateError

METADATA_URL: Final = "http://metadata.tencentyun.com/latest/meta-data"
PROFILE_FILES: Final = (
    Path("~/.tencentcloud/credentials"),
    Path("/etc/tencentcloud/credentials"),
)

# Temporary keys are renewed this long before they run out, in seconds: the clock skew that the API allows.
RENEW_BEFORE: Final = 300.0

_HOW: Final = (
    "Set TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY (and TENCENTCLOUD_TOKEN for temporary keys), write "
    "secret_id and secret_key under [default] in ~/.tencentcloud/credentials, or pass credentials="
)


def _masked(text: str) -> str:
    return repr(f"{text[:4]}...") if len(text) > 8 else "'...'"


def _not_blank(instance: Secrets, attribute: attrs.Attribute[str], value: str) -> None:
    del instance
    if not value or value != value.strip():
        raise CredentialsError(
            f"the {attribute.name} is empty or begins or ends with a blank", remedy=_HOW
        )


@attrs.frozen
class Secrets:
    """A pair of keys, and the token that belongs to it when they are temporary.

    Attributes:
        expires: When they run out, in seconds since 1970; ``None`` for never.
    """

    secret_id: str = attrs.field(repr=_masked, validator=_not_blank)
    secret_key: str = attrs.field(repr=False, validator=_not_blank)
    token: str | None = attrs.field(default=None, repr=False)
    expires: float | None = None


class CredentialSource(Protocol):
    """Where keys come from. Methods may be called from several threads."""

    def get(self) -> Secrets:
        """Return keys that are good for now.

        Raises:
            CredentialsError: There are none.
        """
        ...

    def renew(self) -> bool:
        """Forget keys that the cloud refused; return whether the next :meth:`get` may give others."""
        ...


class StaticCredentials:
    """Keys the caller has.

    Args:
        secret_id: The key's id.
        secret_key: The key.
        token: What belongs to temporary keys.

    Raises:
        CredentialsError: One is empty.
    """

    def __init__(self, secret_id: str, secret_key: str, token: str | None = None) -> None:
        self._secrets = Secrets(secret_id, secret_key, token)

    def __repr__(self) -> str:
        """Show the beginning of the id only."""
        return f"StaticCredentials({self._secrets!r})"

    def get(self) -> Secrets:
        """Return the keys."""
        return self._secrets

    def renew(self) -> bool:
        """Return false: there are no others."""
        return False


class EnvironmentCredentials:
    """``TENCENTCLOUD_SECRET_ID``, ``..._SECRET_KEY`` and ``..._TOKEN`` (or ``..._SECURITY_TOKEN``).

    Args:
        environ: Where the variables are; ``None`` is the process's own.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ

    def __repr__(self) -> str:
        """Show no value."""
        return "EnvironmentCredentials()"

    def get(self) -> Secrets:
        """Read the variables.

        Raises:
            CredentialsError: They are not set, or only one is.
        """
        found = {
            name: self._environ.get(name, "")
            for name in ("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY")
        }
        missing = [name for name, value in found.items() if not value]
        if missing:
            raise CredentialsError(f"{' and '.join(missing)} not set", remedy=_HOW)
        token = self._environ.get("TENCENTCLOUD_TOKEN") or self._environ.get(
            "TENCENTCLOUD_SECURITY_TOKEN"
        )
        return Secrets(
            found["TENCENTCLOUD_SECRET_ID"], found["TENCENTCLOUD_SECRET_KEY"], token or None
        )

    def configured(self) -> bool:
        """Whether one of the variables is set, be it alone."""
        return any(
            self._environ.get(name)
            for name in ("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY")
        )

    def renew(self) -> bool:
        """Return true: the variables are read anew each time."""
        return True


class ProfileCredentials:
    """``secret_id``, ``secret_key`` and ``token`` in a section of an INI file.

    Args:
        files: The first that exists counts.
        profile: The section.
    """

    def __init__(self, files: Sequence[Path] = PROFILE_FILES, *, profile: str = "default") -> None:
        self._files = tuple(Path(file) for file in files)
        self._profile = profile

    def __repr__(self) -> str:
        """Show where it looks."""
        return (
            f"ProfileCredentials({[str(file) for file in self._files]}, profile={self._profile!r})"
        )

    def file(self) -> Path | None:
        """Return the file that counts; ``None`` where there is none."""
        for file in self._files:
            path = file.expanduser()
            if path.is_file():
                return path
        return None

    def get(self) -> Secrets:
        """Read the file.

        Raises:
            CredentialsError: There is no file, it cannot be read, or it lacks what is needed.
        """
        path = self.file()
        if path is None:
            names = " nor ".join(str(file) for file in self._files)
            raise CredentialsError(f"there is no {names}", remedy=_HOW)
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CredentialsError(
                f"{path} cannot be read: {error.strerror}",
                remedy="Make it readable",
                device=str(path),
            ) from error
        except (configparser.Error, UnicodeDecodeError):
            # The parser's message quotes the line, which may be a key.
            raise CredentialsError(
                f"{path} is not an INI file",
                remedy="Write [default], then secret_id = ... and secret_key = ... on lines of their own",
                device=str(path),
            ) from None
        if not parser.has_section(self._profile):
            raise CredentialsError(
                f"{path} has no section [{self._profile}]",
                remedy=f"It has: {', '.join(parser.sections()) or 'none'}",
                device=str(path),
            )
        section = parser[self._profile]
        values = {
            name: section.get(name, "").strip().strip("\"'")
            for name in ("secret_id", "secret_key", "token")
        }
        missing = [name for name in ("secret_id", "secret_key") if not values[name]]
        if missing:
            raise CredentialsError(
                f"{path} has no {' and no '.join(missing)} in [{self._profile}]",
                remedy="Add it",
                device=str(path),
            )
        return Secrets(values["secret_id"], values["secret_key"], values["token"] or None)

    def renew(self) -> bool:
        """Return true: the file is read anew each time."""
        return True


class TemporaryCredentials:
    """Keys that run out, and are fetched anew in time. Base of role and AssumeRole.

    Args:
        clock: Seconds since 1970.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: Secrets | None = None

    def get(self) -> Secrets:
        """Return keys that are good for :data:`RENEW_BEFORE` seconds more.

        Raises:
            CredentialsError: None could be got, and those at hand have run out.
        """
        with self._lock:
            kept = self._kept
            if kept is not None and not self._due(kept, RENEW_BEFORE):
                return kept
            try:
                self._kept = self._fetch()
            except CvmMigrateError:
                # What is at hand serves until its end, whatever went wrong: the next call tries again.
                if kept is None or self._due(kept, 0):
                    raise
                return kept
            return self._kept

    def renew(self) -> bool:
        """Forget the keys at hand."""
        with self._lock:
            self._kept = None
        return True

    def _due(self, secrets: Secrets, before: float) -> bool:
        return secrets.expires is not None and secrets.expires - before <= self._clock()

    def _fetch(self) -> Secrets:
        raise NotImplementedError


class CvmRoleCredentials(TemporaryCredentials):
    """The role bound to the CVM the caller runs on, from the metadata service.

    Args:
        role: The role's name; ``None`` asks the service.
        url: The metadata service.
        timeout: For each of the two requests, in seconds.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        role: str | None = None,
        *,
        url: str = METADATA_URL,
        timeout: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(clock=clock)
        self._role = role
        self._url = url.rstrip("/")
        self._timeout = timeout

    def __repr__(self) -> str:
        """Show where it looks."""
        return f"CvmRoleCredentials(role={self._role!r}, url={self._url!r})"

    def _fetch(self) -> Secrets:
        base = f"{self._url}/cam/security-credentials/"
        role = self._role or self._read(base).strip()
        if not role:
            raise CredentialsError("this CVM has no role", remedy=_HOW)
        try:
            answer: Any = json.loads(self._read(base + role))
            if answer["Code"] != "Success":
                raise CredentialsError(
                    f"the metadata service gives no keys for the role {role}",
                    remedy="Look at the role in the console (Access Management, Roles)",
                )
            return Secrets(
                str(answer["TmpSecretId"]),
                str(answer["TmpSecretKey"]),
                str(answer["Token"]),
                float(answer["ExpiredTime"]),
            )
        except (ValueError, KeyError, TypeError):
            # The cause may quote the answer, and with it the keys.
            raise CredentialsError(
                f"the metadata service's answer for the role {role} is not understood",
                remedy=_HOW,
            ) from None

    def _read(self, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise CredentialsError(f"not a metadata service: {url}", remedy="Give an http address")
        # Never through a proxy: the service knows the machine by its address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=self._timeout) as reply:
                body: bytes = reply.read(1 << 16)
        except urllib.error.HTTPError as error:
            error.close()
            raise CredentialsError(
                f"the metadata service answers {error.code}: no role is bound to this CVM, or not that one",
                remedy=_HOW,
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise CredentialsError(
                f"no metadata service answers at {self._url} ({reason}): this is no CVM, it seems",
                remedy=_HOW,
            ) from error
        return body.decode("utf-8", "replace")


class DefaultCredentials:
    """The first of environment, profile file and CVM role that is there.

    One that is there but broken (a key without its id, a file that is no INI file) is an error, not a reason
    to look further.

    Args:
        environ: Environment variables; ``None`` is the process's own.
        files: Profile files.
        profile: Section in the profile file; ``None`` takes ``TENCENTCLOUD_PROFILE`` or ``default``.
        metadata_url: The metadata service; ``None`` leaves it out.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        files: Sequence[Path] = PROFILE_FILES,
        profile: str | None = None,
        metadata_url: str | None = METADATA_URL,
    ) -> None:
        variables = os.environ if environ is None else environ
        self._environment = EnvironmentCredentials(variables)
        self._file = ProfileCredentials(
            files, profile=profile or variables.get("TENCENTCLOUD_PROFILE") or "default"
        )
        self._role = None if metadata_url is None else CvmRoleCredentials(url=metadata_url)
        self._found: CredentialSource | None = None

    def __repr__(self) -> str:
        """Show where it looks."""
        return f"DefaultCredentials({self._environment!r}, {self._file!r}, {self._role!r})"

    def get(self) -> Secrets:
        """Return keys from the first place that has any.

        Raises:
            CredentialsError: None has; the message says where it looked.
        """
        if self._found is not None:
            return self._found.get()
        looked: list[str] = []
        if self._environment.configured():
            self._found = self._environment
            return self._found.get()
        looked.append("environment: TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY not set")
        if self._file.file() is not None:
            self._found = self._file
            return self._found.get()
        looked.append(f"profile file: {_message_of(self._file)}")
        if self._role is not None:
            try:
                secrets = self._role.get()
            except CredentialsError as error:
                looked.append(f"CVM role: {error.message}")
            else:
                self._found = self._role
                return secrets
        raise CredentialsError(
            f"no Tencent Cloud credentials found; looked at {'; '.join(looked)}", remedy=_HOW
        )

    def renew(self) -> bool:
        """Forget the keys at hand."""
        return self._found is not None and self._found.renew()


def _message_of(source: ProfileCredentials) -> str:
    try:
        source.get()
    except CredentialsError as error:
        return error.message
    return "found"
