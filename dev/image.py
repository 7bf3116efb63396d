"""Builds the container image; carries it to hosts without internet; shows that building it twice gives the same image.

Notable:
- pip inside the build gets this host's settings (index, proxy, certificates) as build secrets and a folder of local wheels
  as a build context of its own: neither is in the image or its history.
- What an image holds has a digest (path, kind, owner, mode and bytes of every file), which runs put into their manifest.
- `--verify` builds twice without cache and compares that, file by file, and every package.
  Layers and the image's digest are compared too and named when they differ; they are equal where the builder dates its
  own entries with SOURCE_DATE_EPOCH, which is the last commit's time.
"""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev.cli import IMAGE
from mapanything.environment import IMAGE_FILE
from mapanything.errors import InputError, run_command

ROOT = Path(__file__).parents[1]
NAME = "mapanything-opv2v"
PIP_SECTIONS = ("global", "install", ":env:")  # from weak to strong
PIP_KEYS = ("index-url", "extra-index-url", "no-index", "proxy", "trusted-host", "timeout", "default-timeout", "retries")

# Runs in an image, prints what it holds as JSON.
LIST_CONTENTS = ROOT / "docker" / "build" / "fingerprint.py"


@dataclass(frozen=True, slots=True)
class Contents:
    """The parts of an image."""

    image: str  # sha256:…, the digest of its configuration, which names every layer
    layers: list[str]
    packages: list[str]
    files: dict[str, str]


def docker(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the docker client; its progress goes to stderr, its errors are the user's to read."""
    try:
        done = subprocess.run(["docker", *arguments], cwd=ROOT, text=True, **options)
    except FileNotFoundError as error:
        raise InputError("docker is not installed; install Docker Engine with its buildx and compose plugins") from error
    if done.returncode:
        raise InputError(f"docker {arguments[0]} failed with exit code {done.returncode}, see above")
    return done


def need_engine() -> None:
    """Asks for an engine. Raises InputError: no docker, or nobody answers it."""
    try:
        done = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InputError("docker is not installed; install Docker Engine with its buildx and compose plugins") from error
    if done.returncode:
        said = last_line(done.stderr)
        raise InputError(f"no Docker engine answers ({said}); start it, or check DOCKER_HOST and your membership of its group")


def git(*arguments: str) -> str:
    """The answer of git about this clone; nothing where it is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def pip_settings(listed: str) -> dict[str, str]:
    """The settings in the output of `pip config list` that hold in a container as well: no folder of this host."""
    found: dict[str, dict[str, str]] = {section: {} for section in PIP_SECTIONS}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in found:
            found[section][key] = str(ast.literal_eval(value))
    merged = {key: value for section in PIP_SECTIONS for key, value in found[section].items()}
    settings = {
        key: " ".join(word for word in merged[key].split() if "file:" not in word) for key in PIP_KEYS if key in merged
    }
    return {key: value for key, value in settings.items() if value}


def wheels_folder(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    """A folder with wheels for the build: the given one, else the one that pip is pointed to here."""
    if given is not None:
        if not given.is_dir():
            raise InputError(f"{given}: is no folder; --wheels takes the folder that holds the wheels")
        return given
    candidates = [Path(word) for word in environment.get("PIP_FIND_LINKS", "").split()]
    return next((folder for folder in candidates if folder.is_dir()), None)


@contextlib.contextmanager
def pip_options(wheels: Path | None) -> Iterator[list[str]]:
    """Options of `docker build` that let pip inside reach what pip reaches here."""
    options = []
    folder = wheels_folder(wheels, os.environ)
    if folder is not None:
        options += ["--build-context", f"wheels={folder}"]
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings = pip_settings(listed)
    with tempfile.TemporaryDirectory() as work:
        if settings:
            path = Path(work, "pip.conf")
            path.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
            options += ["--secret", f"id=pip_conf,src={path}"]
        certificates = os.environ.get("PIP_CERT")
        if certificates and Path(certificates).is_file():
            options += ["--secret", f"id=ca_bundle,src={certificates}"]
        yield options


def build_command(
    variant: str, tag: str, pip: list[str], base: str | None, snapshot: str | None, no_cache: bool, target: str = ""
) -> list[str]:
    commit = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")  # no tag: the bare commit
    arguments = {"TORCH_VARIANT": variant, "REVISION": commit or "unknown"}
    if base:
        arguments["BASE_IMAGE"] = base
    if snapshot:
        arguments["DEBIAN_SNAPSHOT"] = snapshot
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    if epoch:
        arguments["SOURCE_DATE_EPOCH"] = epoch
    command = ["buildx", "build", "--load", "--tag", tag, *pip]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    return [*command, *(["--no-cache"] if no_cache else []), *(["--target", target] if target else []), "."]


def contents(tag: str) -> Contents:
    """Starts a container of the image, as root so that it may read everything, and lists what it holds."""
    inspected = json.loads(docker("image", "inspect", tag, stdout=subprocess.PIPE).stdout)[0]
    python = ["run", "--rm", "--network=none", "--user=0", "--entrypoint=python", tag, "-c", LIST_CONTENTS.read_text("utf-8")]
    listed = json.loads(docker(*python, stdout=subprocess.PIPE).stdout)
    return Contents(inspected["Id"], inspected["RootFS"]["Layers"], listed["packages"], listed["files"])


def differences(first: Contents, second: Contents) -> list[str]:
    """Packages and files that are not the same in both, a line each."""
    packages = sorted(set(first.packages) ^ set(second.packages))
    lines = [f"package {name} is in one build only" for name in packages]
    for path in sorted(first.files.keys() | second.files.keys()):
        one, two = first.files.get(path, "not there"), second.files.get(path, "not there")
        if one != two:
            lines.append(f"{path}: {one} / {two}")
    return lines


def verify(variant: str, build: list[list[str]], tags: list[str]) -> int:
    """Builds twice without cache and compares. 0: the same packages and files."""
    found = []
    try:
        for number, command in enumerate(build):
            print(f"build {number + 1} of {len(build)} ({variant}, without cache)", file=sys.stderr)
            docker(*command, stdout=sys.stderr)
            found.append(contents(tags[number]))
    finally:
        subprocess.run(["docker", "image", "rm", *tags], capture_output=True)
    first, second = found
    lines = differences(first, second)
    for line in lines[:20]:
        print(line)
    if lines:
        print(f"{len(lines)} differences between two builds of the {variant} image")
        return 1
    layers = sum(one == two for one, two in zip(first.layers, second.layers))
    same = "the same" if first.image == second.image else "not the same"
    print(
        f"two builds of the {variant} image: the same {len(first.packages)} packages and {len(first.files)} files "
        f"(path, owner, mode, bytes); {layers} of {len(first.layers)} layers the same; image digest {same}"
    )
    return 0


def save(tag: str, target: Path) -> None:
    """Writes the image to a file that `--load` and `docker load` read; packed where the name ends in .gz."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    pipe = subprocess.PIPE
    try:
        with aside.open("wb") as file, subprocess.Popen(["docker", "save", tag], stdout=pipe, stderr=pipe) as process:
            assert process.stdout is not None and process.stderr is not None
            if target.suffix == ".gz":
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=3, mtime=0) as packed:
                    shutil.copyfileobj(process.stdout, packed, 1 << 20)
            else:
                shutil.copyfileobj(process.stdout, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
            said = last_line(process.stderr.read().decode(errors="replace"))
        if process.returncode:
            raise InputError(f"{target}: not written, docker save {tag} failed ({said})")
        aside.replace(target)
    except OSError as error:
        raise InputError(f"{target}: can't be written ({error.strerror or error}); free space or fix permissions") from error
    finally:
        aside.unlink(missing_ok=True)
    print(f"{target}: {tag}, {target.stat().st_size / 1e9:.2f} GB; on the other host: ./invoke image --load {target.name}")


def load(source: Path) -> None:
    """Takes an image from a file that `save` wrote; docker takes all of it or nothing."""
    done = subprocess.run(["docker", "load", "--input", str(source)], capture_output=True, text=True)
    if done.returncode:
        said = last_line(done.stderr)
        raise InputError(f"{source}: docker can't load it ({said}); was it copied whole, and has docker's disk room for it?")
    print(done.stdout.strip())


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it did not say why"])[-1]


def main() -> int:
    args = IMAGE.parse()
    if args.load is not None and not args.load.is_file():
        raise InputError(f"{args.load}: is no file; --load takes what --save wrote")
    if args.save is not None and not args.save.parent.is_dir():
        raise InputError(f"{args.save.parent}: is no folder; make it or save elsewhere")
    need_engine()
    if args.load is not None:
        load(args.load)
        return 0
    tag = args.tag or f"{NAME}:{args.variant}"
    with pip_options(args.wheels) as pip:
        if args.verify:
            tags = [f"{NAME}:verify-{os.getpid()}-{letter}" for letter in "ab"]
            build = [build_command(args.variant, name, pip, args.base, args.snapshot, no_cache=True) for name in tags]
            return verify(args.variant, build, tags)
        docker(*build_command(args.variant, tag, pip, args.base, args.snapshot, args.no_cache), stdout=sys.stderr)
        if args.dev:  # on top of what was just built
            docker(*build_command(args.variant, f"{tag}-dev", pip, args.base, args.snapshot, False, "dev"), stdout=sys.stderr)
    size = int(docker("image", "inspect", "--format", "{{.Size}}", tag, stdout=subprocess.PIPE).stdout)
    read = ["run", "--rm", "--network=none", "--entrypoint=cat", tag, str(IMAGE_FILE)]
    made = json.loads(docker(*read, stdout=subprocess.PIPE).stdout)
    print(f"{tag}: {size / 1e9:.2f} GB, contents {made['contents']}")
    if args.save is not None:
        save(tag, args.save)
    return 0


if __name__ == "__main__":
    run_command(main)
