"""Plan files: what they say is what plans hold, and what is wrong is named with file, table and key."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import attrs
import pytest

from cvm_migrate import ImageFile, LocalHost, Options, SshHost
from cvm_migrate.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from cvm_migrate.fleet import Place, Plan, load_plan, load_plans
from cvm_migrate.migration import CvmTarget

ENDS = 'source = "image:/a.img"\ntarget = "image:/b.img"\n'


def write(folder: Path, text: str, name: str = "plans.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def refusal(folder: Path, text: str, name: str = "plans.toml") -> InvalidRequestError:
    file = write(folder, text, name)
    with pytest.raises(InvalidRequestError) as caught:
        load_plans(file)
    assert str(file) in caught.value.message
    return caught.value


def test_a_file_with_one_migration_is_one_plan(tmp_path: Path) -> None:
    plan = load_plan(
        write(
            tmp_path,
            ENDS + '[options]\nbandwidth = "50M"\nchunk = 65536\nrungs = []\ncompare = true\n',
            "web-1.toml",
        )
    )

    assert plan == Plan(
        name="web-1",
        source="image:/a.img",
        target="image:/b.img",
        options=Options(bandwidth=50 << 20, chunk=64 << 10, rungs=(), compare=True),
    )
    assert plan.source.endpoint() == ImageFile("/a.img")


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml = load_plans(
        write(
            tmp_path,
            '[defaults]\nforce = true\noptions = { bandwidth = "1.5G", streams = 4 }\n'
            f'[[migrations]]\nname = "a"\n{ENDS}options = {{ streams = 1 }}\n',
        )
    )
    written = {
        "defaults": {"force": True, "options": {"bandwidth": "1.5G", "streams": 4}},
        "migrations": [
            {
                "name": "a",
                "source": "image:/a.img",
                "target": "image:/b.img",
                "options": {"streams": 1},
            }
        ],
    }

    assert load_plans(write(tmp_path, json.dumps(written), "plans.json")) == toml
    assert toml[0].force
    assert toml[0].options.bandwidth == 3 << 29
    assert toml[0].options.streams == 1


def test_places_have_the_settings_of_their_kind_with_paths_from_the_file_s_folder(
    tmp_path: Path,
) -> None:
    plan, other = load_plans(
        write(
            tmp_path,
            """
            [defaults]
            source = { identity = "keys/fleet", jump = "bastion" }
            [[migrations]]
            name = "a"
            source = { at = "ssh://admin@web/dev/sda", sudo = true, jump = "other" }
            target = { at = "cvm:ap-guangzhou/ins-0a1b2c3d", snapshots = false, data_port = 8443 }
            [[migrations]]
            name = "b"
            source = "ssh://root@[2001:db8::1]:2222/dev/sda,/dev/sdb"
            target = { at = "local:/dev/sdy,/dev/sdz", data_host = "10.0.0.1" }
            """,
        )
    )

    assert plan.source.endpoint() == SshHost(
        "admin@web", disks=["/dev/sda"], sudo=True, jump="other", identity=tmp_path / "keys/fleet"
    )
    target = plan.target.endpoint()
    assert isinstance(target, CvmTarget)
    assert target.instance.instance_id == "ins-0a1b2c3d"
    assert target.data_port == 8443
    assert other.source.endpoint() == SshHost(
        "root@2001:db8::1",
        disks=["/dev/sda", "/dev/sdb"],
        port=2222,
        jump="bastion",
        identity=tmp_path / "keys/fleet",
    )
    assert other.target.endpoint() == LocalHost(
        disks=["/dev/sdy", "/dev/sdz"], data_host="10.0.0.1"
    )


def test_plans_pickle_and_compare(tmp_path: Path) -> None:
    plan = load_plan(
        write(
            tmp_path,
            'source = { at = "ssh://root@web/dev/sda", identity = "key" }\n'
            'target = "cvm:ap-guangzhou/ins-0a1b2c3d"\n',
        )
    )

    assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301 - just made


def test_a_file_from_a_windows_editor_is_read(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_bytes(b"\xef\xbb\xbf" + ENDS.replace("\n", "\r\n").encode())

    assert load_plan(file).name == "plan"


# Values that each option may have, beside its default: what a file can say is what Options can.
VALUES = {
    "max_downtime": 2.5,
    "freeze_limit": 60,
    "streams": 4,
    "chunk": "2M",
    "codec": "zstd",
    "level": 3,
    "bandwidth": "10M",
    "read_limit": 1 << 20,
    "rungs": ["ebpf"],
    "block": "64K",
    "max_passes": 5,
    "max_bytes": 1.5,
    "prove": "sent",
    "patience": 10,
    "compare": True,
    "batch": "1G",
    "attempts": 2,
    "data_port": 4443,
    "route": "ssh",
}


def test_every_option_can_stand_in_a_file(tmp_path: Path) -> None:
    written = {"source": "image:/a", "target": "image:/b", "options": VALUES}
    options = load_plan(write(tmp_path, json.dumps(written), "p.json")).options

    assert set(VALUES) == {field.name for field in attrs.fields(Options)}
    for name in VALUES:
        assert getattr(options, name) != getattr(Options(), name), name
    assert options.chunk == 2 << 20
    assert options.rungs == ("ebpf",)


@pytest.mark.parametrize(
    ("text", "where", "instead"),
    [
        (ENDS + "sorce = 1", "sorce", "Write source"),
        (ENDS + "[options]\nmax_downtme = 1", "options: max_downtme", "Write max_downtime"),
        (ENDS + "[options]\nqqq = 1", "options: qqq", "Use one of max_downtime"),
        (ENDS + '[options]\nbandwidth = "50 Megs"', "options: bandwidth", '"50M"'),
        (ENDS + '[options]\nbandwidth = "-5M"', "options: bandwidth", '"50M"'),
        (ENDS + "[options]\nbandwidth = 1.5", "options: bandwidth", '"50M"'),
        (ENDS + "[options]\nbandwidth = true", "options: bandwidth", '"50M"'),
        (ENDS + '[options]\nbandwidth = "1K"', "options: bandwidth", "at least 65536 (64.0 KiB)"),
        (ENDS + '[options]\nstreams = "2"', "options: streams", "from 1 to 16"),
        (ENDS + "[options]\nmax_downtime = nan", "options: max_downtime", "between"),
        (ENDS + "[options]\nmax_downtime = 2026-01-01", "options: max_downtime", "between"),
        (ENDS + "[options]\nmax_downtime = [1]", "options: max_downtime", "a list"),
        (ENDS + "[options]\ncompare = 1", "options: compare", "true or false"),
        (ENDS + '[options]\nrungs = "ebpf"', "options: rungs", '["ebpf", "tracefs"]'),
        (ENDS + "[options]\nrungs = [1]", "options: rungs", '["ebpf", "tracefs"]'),
        (ENDS + '[options]\nrungs = ["bpf"]', "options: rungs", "ebpf and tracefs"),
        (ENDS + '[options]\ncodec = "lz4"', "options: codec", "zstd"),
        (ENDS + "options = 3", "options", "Write [options]"),
        (ENDS + 'force = "yes"', "force", "true or false"),
        (ENDS + "name = 3", "name", "letters, digits"),
        (ENDS + 'name = "../x"', "name", "letters, digits"),
        ('source = "image:/a"', "target", 'Write target = "cvm:'),
        ('target = "image:/a"', "source", 'Write source = "ssh://'),
        ('source = 3\ntarget = "image:/a"', "source", 'Write source = "local:'),
        ('source = "tape:/a"\ntarget = "image:/a"', "source", "local, image, ssh"),
        ('source = "image:a"\ntarget = "image:/a"', "source", "Write it from / on"),
        (
            'source = "cvm:ap-guangzhou/ins-0a1b2c3d"\ntarget = "image:/a"',
            "source",
            "ssh://root@host",
        ),
        ('source = {}\ntarget = "image:/a"', "source: at", 'Write at = "ssh://'),
        (
            'source = { at = "image:/a", sudo = true }\ntarget = "image:/b"',
            "source: sudo",
            "Use one of data_host",
        ),
        (
            'source = { at = "ssh://a/dev/sda", identty = "k" }\ntarget = "image:/b"',
            "source: identty",
            "Write identity",
        ),
        (
            'source = { at = "ssh://a/dev/sda", port = "22" }\ntarget = "image:/b"',
            "source: port",
            "a whole number",
        ),
        (
            'source = { at = "ssh://a/dev/sda", password = "geheim" }\ntarget = "image:/b"',
            "source: password",
            "keys or an agent",
        ),
        ("migrations = []", "migrations", "[[migrations]]"),
        ("migrations = 1", "migrations", "[[migrations]]"),
        ("migrations = [1]", "migrations 1", "must be a table"),
        ("[defaults]\nforce = true", "defaults", "[[migrations]]"),
        ("[[migrations]]\n" + ENDS, "migrations 1: name", 'name = "web-1"'),
        (ENDS + "[[migrations]]\nname = 'a'\n" + ENDS, "source", "Use one of defaults"),
        (
            "[defaults]\nname = 'x'\n[[migrations]]\nname = 'a'\n" + ENDS,
            "defaults: name",
            "Use one of",
        ),
        (
            "[defaults]\nsource = 'image:/a'\n[[migrations]]\nname = 'a'\n" + ENDS,
            "defaults: source",
            "Write [source]",
        ),
        (
            "[defaults]\nsource = { at = 'image:/a' }\n[[migrations]]\nname = 'a'\n" + ENDS,
            "defaults: source: at",
            "Move it there",
        ),
        (
            "[[migrations]]\nname = 'web'\n" + ENDS + "options = { bandwith = '5M' }",
            "migrations 1 (web): options: bandwith",
            "Write bandwidth",
        ),
    ],
)
def test_what_is_wrong_is_named_and_what_to_write_instead(
    text: str, where: str, instead: str, tmp_path: Path
) -> None:
    error = refusal(tmp_path, text)

    assert f"plans.toml: {where}: " in error.message
    assert instead in str(error)
    assert "geheim" not in str(error)


def test_two_plans_for_one_target_are_refused_whatever_they_call_it(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    (tmp_path / "alias").symlink_to("disk")
    for one, other in (
        (f"image:{tmp_path}/disk", f"local:{tmp_path}/alias"),
        ("ssh://root@web/dev/sdb,/dev/sdc", "ssh://admin@WEB:22/dev/sdc"),
        ("cvm:ap-guangzhou/ins-1", "cvm:ap-guangzhou/ins-1/dev/vdb?snapshots=no"),
    ):
        text = "".join(
            f'[[migrations]]\nname = "{name}"\nsource = "image:/{name}"\ntarget = "{target}"\n'
            for name, target in (("a", one), ("b", other))
        )

        assert "a and b have the same target" in refusal(tmp_path, text).message


def test_two_plans_of_one_name_are_refused_also_where_file_systems_fold_case(
    tmp_path: Path,
) -> None:
    text = "".join(
        f'[[migrations]]\nname = "{name}"\nsource = "image:/{number}"\ntarget = "image:/t{number}"\n'
        for number, name in enumerate(("web", "WEB"))
    )

    assert "two plans are named WEB" in refusal(tmp_path, text).message


def test_a_plan_that_reads_what_another_writes_is_refused(tmp_path: Path) -> None:
    text = "".join(
        f'[[migrations]]\nname = "{name}"\nsource = "{source}"\ntarget = "{target}"\n'
        for name, source, target in (
            ("capture", "local:/dev/sdy", "image:/images/web.img"),
            ("restore", "image:/images/web.img", "local:/dev/sdz"),
        )
    )

    error = refusal(tmp_path, text)

    assert "the source of restore, image:/images/web.img, is a target of capture" in error.message
    assert "a later call" in str(error)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.toml", b"source = ", "is not TOML"),
        ("p.toml", b'a = "1"\na = "2"', "is not TOML"),
        ("p.toml", b'name = "\xff"', "is not UTF-8: byte 0xff in line 1"),
        ("p.toml", "name = 1".encode("utf-16"), "is not UTF-8"),
        ("p.toml", b"a = " + b"[" * 20000, "nested too deeply"),
        ("p.json", b"{", "is not JSON"),
        ("p.json", b"[" * 100000, "nested too deeply"),
        ("p.json", b"[]", "no object at the top"),
        ("p.json", b'{"name": NaN}', "NaN is no number"),
        ("p.json", b'{"name": "a", "name": "b"}', "stands twice"),
        ("p.json", b'{"source": null, "target": "image:/b"}', "it is null"),
        ("p.yaml", b"source: image:/a", "neither .toml nor .json"),
        ("p.toml", b"#" * (16 << 20) + b"\n", "larger than 16 MiB"),
    ],
)
def test_a_file_that_is_no_plan_file_says_why(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InvalidRequestError, match=says) as caught:
        load_plans(tmp_path / name)

    assert name in str(caught.value)
    assert caught.value.remedy


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(InvalidRequestError, match=r"pipe\.toml is not a file"):
        load_plans(tmp_path / "pipe.toml")
    with pytest.raises(InvalidRequestError, match="is a directory"):
        load_plans(tmp_path)
    with pytest.raises(NotFoundError, match=r"no plan file .*none\.toml"):
        load_plans(tmp_path / "none.toml")


def test_a_file_without_the_right_to_read_it_says_so(tmp_path: Path) -> None:
    # Not even root may read what the kernel only takes.
    (tmp_path / "p.toml").symlink_to("/sys/bus/platform/drivers_probe")
    with pytest.raises(PermissionDeniedError, match="cannot be read"):
        load_plans(tmp_path / "p.toml")


def test_a_file_with_several_plans_is_not_one(tmp_path: Path) -> None:
    text = "".join(
        f'[[migrations]]\nname = "{n}"\nsource = "image:/{n}"\ntarget = "image:/t{n}"\n'
        for n in "ab"
    )
    with pytest.raises(InvalidRequestError, match="holds 2 plans") as caught:
        load_plan(write(tmp_path, text))

    assert caught.value.remedy is not None
    assert "load_plans()" in caught.value.remedy


def test_a_place_is_checked_when_it_is_made() -> None:
    with pytest.raises(InvalidRequestError, match="no setting 'sudoo'"):
        Place("ssh://root@web/dev/sda", {"sudoo": True})
    with pytest.raises(InvalidRequestError, match="is no CVM"):
        Plan(name="a", source="image:/a", target="cvm:here")
    with pytest.raises(InvalidRequestError, match="holds no secrets"):
        Place("cvm:ap-guangzhou/ins-1", {"secret_key": "x"})
