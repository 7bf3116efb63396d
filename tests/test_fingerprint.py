"""mapanything.environment: what a run's manifest says about code, lock and image, in a clone, a copy and a container."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mapanything import environment
from mapanything.environment import code_sha256, fingerprint


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A small copy of a project, without git."""
    root = tmp_path / "project"
    (root / "mapanything/train").mkdir(parents=True)
    (root / "configs").mkdir()
    (root / "mapanything/train/loop.py").write_text("pass\n")
    (root / "configs/train.yaml").write_text("lr: 1\n")
    return root


def commit(root: Path) -> str:
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_here() -> None:
    found = fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert len(found["code_sha256"]) == 64
    assert found["torch_variant"] in ("cpu", "cuda")
    lock = Path(sys.prefix, "lock.txt")
    assert found["lock_sha256"] == (hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["host"]


def test_code_digest_knows_names_and_bytes(copy: Path) -> None:
    first = code_sha256(copy)
    (copy / "README.md").write_text("not code")
    assert code_sha256(copy) == first
    (copy / "configs/train.yaml").write_text("lr: 2\n")
    second = code_sha256(copy)
    (copy / "mapanything/train/loop.py").rename(copy / "mapanything/train/other.py")
    assert len({first, second, code_sha256(copy)}) == 3


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_commit_of_a_clone(copy: Path) -> None:
    assert (fingerprint(copy)["commit"], fingerprint(copy)["dirty"]) == (None, None)
    made = commit(copy)
    (copy / "untracked").touch()
    assert (fingerprint(copy)["commit"], fingerprint(copy)["dirty"]) == (made, False)
    (copy / "configs/train.yaml").write_text("lr: 3\n")
    assert (fingerprint(copy)["commit"], fingerprint(copy)["dirty"]) == (made, True)
    # A folder in somebody's clone is no clone of its own.
    inner = Path(shutil.copytree(copy / "mapanything", copy / "inner/mapanything")).parent
    assert fingerprint(inner)["commit"] is None


@pytest.mark.parametrize(
    ("revision", "expected"),
    [("a" * 40, ("a" * 40, False)), ("a" * 40 + "-dirty", ("a" * 40, True)), ("unknown", (None, None))],
)
def test_image_names_its_commit_while_the_code_is_its_own(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, expected: tuple[str | None, bool | None]
) -> None:
    monkeypatch.setenv("MAPANYTHING_CONTAINER", "1")
    baked = {"revision": revision, "contents": "sha256:1", "code_sha256": code_sha256(copy)}
    file = tmp_path / "image.json"
    file.write_text(json.dumps(baked))
    found = fingerprint(copy, file)
    assert (found["commit"], found["dirty"]) == expected
    assert found["image_contents"] == "sha256:1"
    # Another clone mounted over the image's code: the image's commit is not its.
    (copy / "mapanything/train/loop.py").write_text("changed\n")
    found = fingerprint(copy, file)
    assert (found["commit"], found["dirty"], found["image_contents"]) == (None, None, "sha256:1")


def test_outside_containers_no_image_is_named(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAPANYTHING_CONTAINER", raising=False)
    file = tmp_path / "image.json"
    file.write_text(json.dumps({"contents": "sha256:1"}))
    assert fingerprint(copy, file)["image_contents"] is None
    monkeypatch.setenv("MAPANYTHING_CONTAINER", "1")
    for broken in (file, tmp_path / "none.json"):
        file.write_text("{")
        assert fingerprint(copy, broken)["image_contents"] is None


def test_missing_git_is_no_error(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment.fingerprint(copy)["commit"] is None
