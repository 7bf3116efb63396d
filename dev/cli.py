"""The tables of the commands that only developers run, as `mapanything/cli` has those of users."""

from __future__ import annotations

from mapanything.cli.options import Command, Option, file, flag, folder, word
from mapanything.cli.types import positive

SUITES = {"data": 9, "model": 2, "train": 5, "results": 9, "viz": 5}  # with their rounds

TEST = Command(
    "test",
    "pytest",
    "Runs the tests in parallel. What follows `--` goes to pytest: `./invoke test -- -x tests/opv2v`.",
    (
        Option("match", "only tests whose names match, as pytest's -k"),
        Option("jobs", "processes; 0: in this process, for debuggers", "auto", "one per core"),
        flag("faults", "only the tests of faults, the long ones too, with 10,000 broken files per parser"),
    ),
)
LINT = Command(
    "lint",
    "dev.lint",
    "Checks style, formatting, types, the locks, the shell scripts, the Dockerfile and the compose file.",
    (
        flag("fix", "repair and reformat what can be"),
        flag("all", "a check whose tool is not to be had is an error, not left out"),
    ),
)
BENCH = Command(
    "bench",
    "dev.bench",
    "Measures speed, each against a plain reference in the same run.",
    (
        word("suite", "to measure", "data", choices=(*SUITES, "all"), nargs="?"),
        folder("root", "image root whose first complete frame is used", otherwise="data/opv2v_images, else generated"),
        Option(
            "rounds",
            "timed rounds",
            otherwise=", ".join(f"{suite} {rounds}" for suite, rounds in SUITES.items()),
            type=positive,
        ),
        file("json", "write the figures to this file too"),
    ),
)
LOCK = Command(
    "lock",
    "dev.lock",
    "Renews the hash-locked requirements, one file per torch variant.",
    (
        flag("check", "only say whether the locks fit requirements/base.in; needs no network"),
        flag("dry-run", "only ask the index whether it has all that is locked; downloads nothing"),
        flag("upgrade", "take the newest versions instead of keeping pins"),
    ),
)
IMAGE = Command(
    "image",
    "dev.image",
    "Builds the container image, carries it to other hosts, or shows that it can be built again as it is.",
    (
        Option("variant", "which torch is in it; cuda: cuda13", "cuda", choices=("cpu", "cuda12", "cuda13", "cuda")),
        Option("tag", "name of the image", otherwise="mapanything-opv2v:VARIANT"),
        folder(
            "wheels",
            "folder with wheels that pip's index does not have, such as torch's CPU wheel",
            otherwise="PIP_FIND_LINKS",
        ),
        Option("base", "Debian bookworm image to build on", otherwise="debian:bookworm-slim", metavar="IMAGE"),
        Option("snapshot", "dated Debian archive that all system packages come from", metavar="URL"),
        flag("dev", "also the one of the compose service `test`, with the tools of developers, named TAG-dev"),
        flag("no-cache", "build every layer anew"),
        file("save", "then write the image to this .tar or .tar.gz, for a host without internet", either="what"),
        file("load", "take an image that --save wrote; nothing is built", either="what"),
        flag("verify", "build twice without cache and compare packages, files and layers", either="what"),
    ),
)
