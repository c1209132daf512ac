"""Endpoints from text and from arguments."""

from __future__ import annotations

import pytest

from cvm_migrate import Endpoint, ImageFile, LocalHost, Migration, SshHost, parse_endpoint
from cvm_migrate.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("local:/dev/sdb", LocalHost(disks=["/dev/sdb"])),
        ("local:/dev/sdb,/dev/sdc", LocalHost(disks=["/dev/sdb", "/dev/sdc"])),
        ("image:/a/b.img", ImageFile("/a/b.img")),
        ("ssh://root@host/dev/sda", SshHost("root@host", disks=["/dev/sda"])),
        ("ssh://host:2222/dev/sda", SshHost("host", disks=["/dev/sda"], port=2222)),
        ("ssh://Root@Alias/dev/a,/dev/b", SshHost("Root@Alias", disks=["/dev/a", "/dev/b"])),
        ("ssh://root@[::1]:22/dev/sda", SshHost("root@::1", disks=["/dev/sda"], port=22)),
    ],
)
def test_text_becomes_an_endpoint(text: str, endpoint: Endpoint) -> None:
    """Each form of the command line."""
    assert parse_endpoint(text) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "/dev/sdb",
        "local:",
        "local:sdb",
        "local:/dev/sdb,/dev/sdb",
        "tape:/dev/st0",
        "ssh://root@host",
        "ssh://root:secret@host/dev/sda",
        "ssh://-oProxyCommand=x/dev/sda",
        "ssh:host/dev/sda",
        "",
    ],
)
def test_what_is_no_endpoint_is_refused_with_what_to_write(text: str) -> None:
    """An error that names the text or what is missing, and a remedy."""
    with pytest.raises(InvalidRequestError) as error:
        parse_endpoint(text)

    assert "secret" not in str(error.value) or "secret" in text


@pytest.mark.parametrize(
    "endpoint",
    [LocalHost(disks=["/dev/sdb"]), ImageFile("/a"), SshHost("root@h", disks=["/dev/sda"])],
    ids=["local", "image", "ssh"],
)
def test_descriptions_are_read_back(endpoint: Endpoint) -> None:
    """What messages call an endpoint is what the command line reads."""
    assert isinstance(endpoint, Endpoint)
    assert parse_endpoint(endpoint.description) == endpoint


def test_a_password_is_in_no_text_of_an_endpoint() -> None:
    """Neither its representation nor its description shows it."""
    host = SshHost("root@host", disks=["/dev/sda"], password="hunter2")

    assert "hunter2" not in repr(host)
    assert "hunter2" not in host.description


def test_other_schemes_can_be_brought() -> None:
    """A caller's own kinds of places."""
    mine = LocalHost(disks=["/dev/sdb"])

    assert parse_endpoint("mine:x", more={"mine": lambda _: mine}) is mine


def test_what_is_no_endpoint_is_no_side_of_a_migration() -> None:
    """A plain path is refused with what to give."""
    with pytest.raises(InvalidRequestError, match="cannot be a source"):
        Migration("/dev/sdb", LocalHost(disks=["/dev/sdc"]))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the point
