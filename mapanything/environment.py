"""Names the code, the lock and the image that ran here, in a few words that go into every run's manifest.

Notable:
- An image cannot name its own digest. What it carries instead is a digest over its contents (path, mode and bytes of
  every file), made in its last build step; `./invoke image` prints it beside the engine's digest, and two images with the
  same contents are the same environment.
- `code_sha256` says which code ran even where there is no git: in an image, in a copied folder, in a changed clone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from mapanything.errors import InputError
from mapanything.files import read_json

ROOT = Path(__file__).parents[1]
IMAGE_FILE = Path("/opt/mapanything/image.json")  # written by the Dockerfile


class Fingerprint(TypedDict):
    """None: it cannot be known here."""

    code_sha256: str  # over the package and configs/
    commit: str | None  # of the checkout, or what the image was built from while its code is unchanged
    dirty: bool | None  # tracked files differ from the commit
    lock_sha256: str | None  # of the lock that the environment was made from
    torch_variant: str | None  # cpu, cuda12 or cuda13
    image_contents: str | None  # sha256:..., only in a container of the project's image
    python: str
    host: str


def in_container() -> bool:
    """True in a container of the project's image, where a mount is made in .env and nothing is installed."""
    return os.environ.get("MAPANYTHING_CONTAINER") == "1"


def fingerprint(root: Path = ROOT, image_file: Path = IMAGE_FILE) -> Fingerprint:
    """Everything to name of a run, so that it can be run again. Takes some milliseconds; never raises for what is missing."""
    code = code_sha256(root)
    image = _read_image(image_file) if in_container() else {}
    commit, dirty = _ask_git(root)
    if commit is None and image.get("code_sha256") == code:
        commit, _, mark = image.get("revision", "").partition("-")
        commit, dirty = (commit, mark == "dirty") if commit not in ("", "unknown") else (None, None)
    return Fingerprint(
        code_sha256=code,
        commit=commit,
        dirty=dirty,
        lock_sha256=_file_sha256(Path(sys.prefix, "lock.txt")),
        torch_variant=torch_variant(),
        image_contents=image.get("contents"),
        python=platform.python_version(),
        host=platform.node(),
    )


def code_sha256(root: Path = ROOT) -> str:
    """SHA-256 over the names and bytes of the package's modules and of configs/."""
    whole = hashlib.sha256()
    for path in sorted([*root.glob("mapanything/**/*.py"), *root.glob("configs/**/*.yaml")]):
        whole.update(f"{path.relative_to(root)} {_file_sha256(path)}\n".encode())
    return whole.hexdigest()


def _file_sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def torch_variant() -> str | None:
    """The lock whose torch is installed, by what its package says of itself; None: no torch is."""
    try:
        torch = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return None
    if torch.version.endswith("+cpu"):
        return "cpu"
    return "cuda12" if any("-cu12" in line for line in torch.requires or ()) else "cuda13"


def _read_image(path: Path) -> dict[str, str]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _ask_git(root: Path) -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it; only where `root` is the checkout itself, not a folder in one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top, commit = git("rev-parse", "--show-toplevel"), git("rev-parse", "HEAD")
    if not top or not commit or Path(top).resolve() != root.resolve():
        return None, None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return commit, None if changed is None else bool(changed)


def requirement_lines(path: Path) -> list[str]:
    """The requirements in a file without hashes, comments and continuation marks, one string each."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); restore it from git") from error
    text = text.replace("\\\n", " ")
    lines = (re.sub(r"(\s--hash=\S+)+", "", line.split("#")[0]).strip() for line in text.splitlines())
    return [line for line in lines if line]
