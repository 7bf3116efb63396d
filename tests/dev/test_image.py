"""`./invoke image` with a stand-in for docker: what is built, what is handed in, what is said when something is missing."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev import image
from mapanything.errors import InputError

REPOSITORY = Path(__file__).parents[2]
# Writes down what it was asked for; has an engine unless told otherwise; `save` gives bytes or breaks.
DOCKER = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$FAKE_LOG"
case $1 in
    version) if [[ -n ${FAKE_DOWN:-} ]]; then echo 'Cannot connect to the Docker daemon.' >&2; exit 1; fi; echo 26 ;;
    buildx) exit "${FAKE_BUILD:-0}" ;;
    image) echo 1500000000 ;;
    run) echo '{"contents": "sha256:abc"}' ;;
    load) if [[ -n ${FAKE_LOAD:-} ]]; then echo "$FAKE_LOAD" >&2; exit 1; fi; echo 'Loaded image: it' ;;
    save) if [[ -n ${FAKE_SAVE:-} ]]; then echo 'Error: no such image' >&2; fi; printf 'an image'; exit "${FAKE_SAVE:-0}" ;;
esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of a stand-in for docker."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("PIP_FIND_LINKS", "PIP_CERT", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "log"


def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dev.image", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True)


def test_build_names_variant_revision_and_time(docker: Path) -> None:
    done = call("--variant", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "mapanything-opv2v:cpu: 1.50 GB, contents sha256:abc\n"
    (build,) = [line for line in docker.read_text().splitlines() if line.startswith("buildx")]
    assert "--tag mapanything-opv2v:cpu" in build
    assert "--build-arg TORCH_VARIANT=cpu" in build
    assert "--build-arg REVISION=" in build
    assert "--build-arg SOURCE_DATE_EPOCH=1700000000" in build
    assert "--no-cache" not in build
    assert "DEBIAN_SNAPSHOT" not in build


def test_wheels_and_certificates_are_handed_in(docker: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "ca.crt"
    bundle.write_text("certificate")
    assert call("--no-cache", PIP_FIND_LINKS=f"/not-there {tmp_path}", PIP_CERT=str(bundle)).returncode == 0
    build = docker.read_text()
    assert f"--build-context wheels={tmp_path} " in build
    assert f"--secret id=ca_bundle,src={bundle}" in build
    assert "--build-arg TORCH_VARIANT=cuda" in build
    assert "--no-cache ." in build


def test_pip_settings_leave_out_what_only_this_host_has() -> None:
    listed = "\n".join(
        [
            ":env:.index-url='https://second.example/simple'",
            "download.index-url='https://other.example/simple'",
            "global.cert='/etc/ssl/certs/bundle.crt'",
            "global.extra-index-url='file:///opt/simple https://extra.example/simple'",
            "global.find-links='/srv/wheels'",
            "global.index-url='https://first.example/simple'",
            "install.timeout='30'",
            "global.proxy='file:nothing'",
        ]
    )
    assert image.pip_settings(listed) == {
        "index-url": "https://second.example/simple",
        "extra-index-url": "https://extra.example/simple",
        "timeout": "30",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--load", "nowhere.tar"), "nowhere.tar: is no file"),
        (("--save", "nowhere/image.tar"), "nowhere: is no folder"),
        (("--wheels", "nowhere"), "nowhere: is no folder"),
    ],
)
def test_missing_files_are_named(docker: Path, arguments: tuple[str, ...], said: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
    assert "buildx" not in (docker.read_text() if docker.exists() else "")


def test_no_engine_and_no_docker(docker: Path, tmp_path: Path) -> None:
    down = call(FAKE_DOWN="1")
    assert (down.returncode, down.stderr.count("\n")) == (2, 1)
    assert "no Docker engine answers (Cannot connect to the Docker daemon.)" in down.stderr
    none = call(PATH=str(tmp_path))
    assert (none.returncode, none.stderr.count("\n")) == (2, 1)
    assert "docker is not installed" in none.stderr


def test_failed_build_keeps_its_exit(docker: Path) -> None:
    done = call(FAKE_BUILD="1")
    assert done.returncode == 2
    assert "docker buildx failed with exit code 1" in done.stderr


@pytest.mark.parametrize("name", ["image.tar", "image.tar.gz"])
def test_save_writes_a_whole_file_or_none(docker: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / name
    failed = call("--save", str(target), FAKE_SAVE="1")
    assert failed.returncode == 2
    assert f"error: {target}: not written, docker save mapanything-opv2v:cuda failed (Error: no such image)\n" in failed.stderr
    assert list(folder.iterdir()) == []
    assert call("--save", str(target)).returncode == 0
    data = target.read_bytes()
    assert (gzip.decompress(data) if name.endswith(".gz") else data) == b"an image"
    assert list(folder.iterdir()) == [target]


@pytest.mark.faults
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_save_to_a_full_disk(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    target = tmp_path / "image.tar"
    # The file that is written aside is on a full disk.
    (tmp_path / f".image.tar.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"image\.tar: can't be written \(No space left on device\); free space"):
        image.save("a:b", target)
    assert not list(tmp_path.glob("*image.tar*"))
    assert capfd.readouterr() == ("", "")


def test_load_builds_nothing(docker: Path, tmp_path: Path) -> None:
    saved = tmp_path / "image.tar"
    saved.write_bytes(b"an image")
    done = call("--load", str(saved))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Loaded image: it\n", "")
    assert docker.read_text().splitlines()[1:] == [f"load --input {saved}"]
    broken = call("--load", str(saved), FAKE_LOAD="noise\nunexpected EOF")
    assert (broken.returncode, broken.stdout, broken.stderr.count("\n")) == (2, "", 1)
    assert f"{saved}: docker can't load it (unexpected EOF); was it copied whole" in broken.stderr


def test_differences_name_packages_and_files() -> None:
    first = image.Contents("a", ["x"], ["bash 5", "numpy==2"], {"/a": "100644 0:0 1", "/b": "100644 0:0 1"})
    second = image.Contents("b", ["y"], ["bash 5", "numpy==3"], {"/a": "100755 0:0 1", "/c": "120777 0:0 a"})
    assert image.differences(first, first) == []
    assert image.differences(first, second) == [
        "package numpy==2 is in one build only",
        "package numpy==3 is in one build only",
        "/a: 100644 0:0 1 / 100755 0:0 1",
        "/b: 100644 0:0 1 / not there",
        "/c: not there / 120777 0:0 a",
    ]


def test_verify_wants_two_builds_without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    command = image.build_command("cpu", "a:b", [], None, "https://dated.example/debian", no_cache=True)
    assert "--no-cache" in command
    assert "DEBIAN_SNAPSHOT=https://dated.example/debian" in command
    same = image.Contents("sha256:1", ["l"], ["bash 5"], {"/a": "1"})
    monkeypatch.setattr(image, "docker", lambda *_, **__: None)
    monkeypatch.setattr(image.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(image, "contents", lambda _: same)
    assert image.verify("cpu", [["x"], ["y"]], ["a", "b"]) == 0
    other = iter([same, image.Contents("sha256:2", ["l"], ["bash 5"], {"/a": "2"})])
    monkeypatch.setattr(image, "contents", lambda _: next(other))
    assert image.verify("cpu", [["x"], ["y"]], ["a", "b"]) == 1


def test_missing_wheels_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        image.wheels_folder(tmp_path / "no", {})
    assert image.wheels_folder(None, {}) is None


def test_dev_builds_the_tests_image_on_top(docker: Path) -> None:
    assert call("--variant", "cpu", "--dev", "--no-cache").returncode == 0
    first, second = (line for line in docker.read_text().splitlines() if line.startswith("buildx"))
    assert "--tag mapanything-opv2v:cpu " in first and "--target" not in first and "--no-cache" in first
    assert "--tag mapanything-opv2v:cpu-dev " in second and "--target dev" in second and "--no-cache" not in second
