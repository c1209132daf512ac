"""Names of files between the system's bytes and JSON's text, the same on every Python and in every locale.

A name is UTF-8; bytes that are not stand as lone surrogates in the text, as Python 3 does it, and come back as
they were. Python's own conversion depends on the locale, which is C on a rescue system.
"""

from __future__ import absolute_import, unicode_literals

import codecs
import re
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Text, Tuple, Union

_ESCAPED = re.compile("([\udc80-\udcff])")
_OCTAL = re.compile(b"\\\\([0-7]{3})")
_ERRORS = "surrogateescape" if sys.version_info[0] >= 3 else "cvm_migrate.surrogateescape"


def _escape(error):
    # type: (UnicodeError) -> Tuple[Text, int]
    """Decode what is not UTF-8 as Python 3's surrogateescape does."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    wrong = bytearray(error.object[error.start : error.end])
    return "".join(
        [("\\udc%02x" % byte).encode("ascii").decode("unicode_escape") for byte in wrong]
    ), error.end


if sys.version_info[0] < 3:
    codecs.register_error(_ERRORS, _escape)


def to_text(name):
    # type: (Union[bytes, Text]) -> Text
    """Return a name as text."""
    return name.decode("utf-8", _ERRORS) if isinstance(name, bytes) else name


def to_bytes(name):
    # type: (Text) -> bytes
    """Return a name as the system wants it."""
    return b"".join(
        [
            bytes(bytearray([ord(part) - 0xDC00])) if index % 2 else part.encode("utf-8")
            for index, part in enumerate(_ESCAPED.split(name))
        ]
    )


def unescape(name):
    # type: (bytes) -> Text
    """Return a name out of ``/proc``, where a blank stands as a backslash and 040."""
    return to_text(_OCTAL.sub(lambda m: bytes(bytearray([int(m.group(1), 8) & 255])), name))
