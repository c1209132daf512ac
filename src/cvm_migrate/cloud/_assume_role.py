"""Keys of a role, got with other keys from STS."""

from __future__ import annotations

import time
from collections.abc import Callable

from cvm_migrate.cloud._client import CloudClient
from cvm_migrate.cloud._credentials import CredentialSource, Secrets, TemporaryCredentials
from cvm_migrate.cloud._http import CloudEndpoint
from cvm_migrate.cloud._retry import RetryPolicy
from cvm_migrate.errors import CredentialsError, InvalidRequestError, ServiceError, ThrottledError


class AssumeRoleCredentials(TemporaryCredentials):
    """The role *role_arn*, for whoever *base* is; renewed in time.

    Args:
        base: The keys that may assume the role.
        role_arn: Such as ``qcs::cam::uin/100000000001:roleName/migration``.
        session_name: What the audit log calls the session.
        seconds: How long the keys hold, 900 to 43200.
        region: Where STS is asked.
        endpoint: Where and how the API is reached.
        policy: When a call is repeated.
        clock: Seconds since 1970.

    Raises:
        InvalidRequestError: *seconds* is out of range.
    """

    def __init__(
        self,
        base: CredentialSource,
        role_arn: str,
        *,
        session_name: str = "cvm_migrate",
        seconds: int = 7200,
        region: str = "ap-guangzhou",
        endpoint: CloudEndpoint | str | None = None,
        policy: RetryPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(clock=clock)
        if not 900 <= seconds <= 43200:
            raise InvalidRequestError(
                f"a role's keys cannot hold {seconds} s", remedy="Ask for 900 to 43200 s"
            )
        self._base = base
        self._client = CloudClient(base, region, endpoint)
        self._role_arn = role_arn
        self._session_name = session_name
        self._seconds = seconds
        self._policy = policy or RetryPolicy(attempts=4, seconds=30)

    def __repr__(self) -> str:
        """Show the role only."""
        return f"AssumeRoleCredentials({self._role_arn!r})"

    def _fetch(self) -> Secrets:
        try:
            answer = self._policy.run(
                lambda: self._client.assume_role(
                    self._role_arn, self._session_name, self._seconds
                ),
                doing="assuming the role",
                idempotent=True,
                renew=self._base.renew,
            )
        except (ServiceError, ThrottledError) as error:
            raise CredentialsError(
                error.message,
                remedy=error.remedy,
                code=error.code,
                request_id=error.request_id,
            ) from error
        keys = answer["Credentials"]
        return Secrets(
            str(keys["TmpSecretId"]),
            str(keys["TmpSecretKey"]),
            str(keys["Token"]),
            float(answer["ExpiredTime"]),
        )
