"""Points the mount points data/opv2v_images and data/opv2v_depth at the folders where the data lies.

In a container the same two places are bind mounts, so every configuration names these two paths and no others.
"""

from __future__ import annotations

import os
from pathlib import Path

from mapanything.cli.data import DEPTH, IMAGES, LINK_DATA
from mapanything.cli.options import ROOT
from mapanything.errors import InputError, run_command
from mapanything.opv2v.layout import find_splits


def link(link_path: Path, target: Path) -> str:
    """Makes `link_path` a link to `target`, in one step where a link is there already; says what it did.

    Raises:
        InputError: `target` is no OPV2V root, or `link_path` is a file, a mount or a folder with something in it.
    """
    splits = find_splits(target)
    target = target.resolve()
    if target == link_path.resolve() and not link_path.is_symlink():
        raise InputError(f"{link_path}: is the folder itself, a link would point at itself; nothing to do")
    if os.path.ismount(link_path):
        raise InputError(f"{link_path}: is a mount point (in a container?); change what is mounted there instead")
    if link_path.exists() and not link_path.is_symlink():
        make_room(link_path)
    link_path.parent.mkdir(parents=True, exist_ok=True)
    # Beside, then renamed: a task that runs at this moment sees the old target or the new one, never nothing.
    fresh = link_path.with_name(f".{link_path.name}.{os.getpid()}")
    try:
        fresh.symlink_to(target, target_is_directory=True)
        fresh.replace(link_path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise InputError(f"{link_path}: cannot be made ({error.strerror or error}); check the permissions") from error
    return f"{link_path.parent.name}/{link_path.name} -> {target} ({', '.join(splits)})"


def make_room(path: Path) -> None:
    """Removes an empty folder; refuses anything that could be somebody's data."""
    try:
        path.rmdir()
    except OSError as error:
        raise InputError(f"{path}: is there and not an empty folder; move its content away, then link again") from error


def main() -> int:
    arguments = LINK_DATA.parse()
    if arguments.images is None and arguments.depth is None:
        raise InputError("nothing to link: give --images DIR, --depth DIR or both")
    wanted = [(IMAGES, arguments.images), (DEPTH, arguments.depth)]
    # Both are looked at before the first is changed.
    for _, target in wanted:
        if target is not None:
            find_splits(target)
    for name, target in wanted:
        if target is not None:
            print(link(ROOT / name, target))
    return 0


if __name__ == "__main__":
    run_command(main)
