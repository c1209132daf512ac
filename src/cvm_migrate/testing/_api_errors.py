"""A refusal as the API answers it."""

from __future__ import annotations


class ApiError(Exception):
    """Becomes ``{"Error": {"Code", "Message"}}`` of an answer.

    Args:
        code: Tencent's code, such as ``InvalidInstanceId.NotFound``.
        message: What the caller reads.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
