"""The calls about one instance, repeated as the policy says: what everything about an instance stands on."""

from __future__ import annotations

from collections.abc import Callable

from cvm_migrate.cloud._client import CloudClient, check_region
from cvm_migrate.cloud._credentials import CredentialSource, DefaultCredentials
from cvm_migrate.cloud._facts import InstanceFacts
from cvm_migrate.cloud._http import CloudEndpoint
from cvm_migrate.cloud._json import JsonObject, children
from cvm_migrate.cloud._retry import RetryPolicy
from cvm_migrate.deadline import CancelToken, Deadline
from cvm_migrate.errors import CvmMigrateError, InvalidRequestError, NotFoundError


class InstanceCalls:
    """An instance, and how calls about it are made. Its one subclass is :class:`CvmInstance`, which documents it."""

    def __init__(
        self,
        instance_id: str,
        *,
        region: str,
        credentials: CredentialSource | None,
        endpoint: CloudEndpoint | str | None,
        policy: RetryPolicy | None,
        poll: float,
    ) -> None:
        if not instance_id.startswith("ins-") or not instance_id[4:].isalnum():
            raise InvalidRequestError(
                f"not an instance: {instance_id!r}",
                remedy="Write the id as ins-xxxxxxxx",
                device=instance_id,
            )
        self.instance_id = instance_id
        self.region = check_region(region)
        self.client = CloudClient(
            DefaultCredentials() if credentials is None else credentials, region, endpoint
        )
        self.policy = RetryPolicy() if policy is None else policy
        self.poll = poll

    def __repr__(self) -> str:
        """Name instance and region."""
        return f"CvmInstance({self.instance_id!r}, region={self.region!r})"

    @property
    def description(self) -> str:
        """What messages and the command line call it: ``cvm:REGION/ID``."""
        return f"cvm:{self.region}/{self.instance_id}"

    def describe(
        self, *, deadline: Deadline | None = None, cancel: CancelToken | None = None
    ) -> InstanceFacts:
        """Ask the API for the instance as it is now.

        Raises:
            NotFoundError: There is no such instance in the region.
            CredentialsError: No keys, or refused ones.
        """
        answer = self.read(
            lambda: self.client.describe_instances(self.instance_id),
            doing=f"describing {self.instance_id}",
            deadline=deadline,
            cancel=cancel,
        )
        found = children(answer, "InstanceSet")
        if not found:
            raise NotFoundError(
                f"there is no instance {self.instance_id} in {self.region}",
                remedy="Look at the id, the region and the account: an instance is found only in its own region",
                device=self.instance_id,
                action="DescribeInstances",
            )
        return InstanceFacts.from_wire(found[0], self.region)

    def read(
        self,
        call: Callable[[], JsonObject],
        *,
        doing: str,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> JsonObject:
        """Make a call that changes nothing, or that can be made twice, and repeat it as the policy says."""
        return self.policy.run(
            call,
            doing=doing,
            idempotent=True,
            renew=self.client.credentials.renew,
            deadline=deadline,
            cancel=cancel,
        )

    def change(
        self,
        call: Callable[[], JsonObject],
        *,
        doing: str,
        look: Callable[[], JsonObject | None],
        settled: Callable[[CvmMigrateError], JsonObject | None] | None = None,
        deadline: Deadline | None = None,
        cancel: CancelToken | None = None,
    ) -> JsonObject:
        """Make a call that must not be made twice: where no answer came, *look* finds out first."""
        return self.policy.run(
            call,
            doing=doing,
            idempotent=False,
            look=look,
            settled=settled,
            renew=self.client.credentials.renew,
            deadline=deadline,
            cancel=cancel,
        )

    def pause(self, doing: str, deadline: Deadline, cancel: CancelToken | None = None) -> None:
        """Wait for one poll.

        Raises:
            DeadlineError: The time is over.
            CancelledError: It was called off.
        """
        left = deadline.remaining(doing)
        if cancel is not None:
            cancel.check()
        self.policy.sleep(self.poll if left is None else min(self.poll, left))
        if cancel is not None:
            cancel.check()
