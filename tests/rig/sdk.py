"""Tencent's own SDK, as a caller of the API."""

from __future__ import annotations

import importlib
from typing import Any

VERSIONS = {
    "cvm": "2017-03-12",
    "cbs": "2017-03-12",
    "vpc": "2017-03-12",
    "sts": "2018-08-13",
    "msp": "2018-03-19",
}


def _sdk(module: str) -> Any:
    """The SDK has no types."""
    return importlib.import_module(f"tencentcloud.common.{module}")


class RefusedError(Exception):
    """The API answered with an error, or did not answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Sdk:
    """One caller; *endpoint* ``None`` is the real service."""

    def __init__(
        self,
        secret_id: str,
        secret_key: str,
        token: str | None = None,
        *,
        endpoint: str | None,
        region: str = "ap-guangzhou",
        method: str = "POST",
        timeout: int = 60,
    ) -> None:
        self._credential: Any = _sdk("credential").Credential(secret_id, secret_key, token)
        self._region = region
        address = endpoint.removeprefix("http://") if endpoint else None
        http: Any = _sdk("profile.http_profile").HttpProfile(
            protocol="http" if address else "https",
            endpoint=address,
            reqMethod=method,
            reqTimeout=timeout,
        )
        self._profile: Any = _sdk("profile.client_profile").ClientProfile(httpProfile=http)

    def call(
        self, service: str, action: str, params: dict[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """Call; parameters can be given by name."""
        client: Any = _sdk("common_client").CommonClient(
            service, VERSIONS[service], self._credential, self._region, self._profile
        )
        refused: type[Exception] = _sdk(
            "exception.tencent_cloud_sdk_exception"
        ).TencentCloudSDKException
        try:
            answer: dict[str, Any] = client.call_json(action, {**(params or {}), **more})
        except refused as error:
            raise RefusedError(str(getattr(error, "code", "")), str(error)) from error
        except (ValueError, OSError) as error:
            # The SDK lets these through where an answer is no JSON, or is cut.
            raise RefusedError(type(error).__name__, str(error)) from error
        response: dict[str, Any] = answer["Response"]
        return response
