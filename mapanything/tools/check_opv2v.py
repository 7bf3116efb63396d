"""Checks an OPV2V data set and names every missing, corrupt or inconsistent file at once.

    python -m mapanything.tools.check_opv2v --root DIR [--depth-root DIR] [--quick | --deep] [--report FILE.json]

Exit code: 0 nothing is wrong (what the released data are known to have wrong is a warning and does not count),
1 problems were found, 2 the command itself is wrong (no such folder, unknown split, report can't be written).
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from mapanything.cli.data import CHECK_DATA, DEPTH, IMAGES
from mapanything.errors import printable, run_command
from mapanything.opv2v.check.report import (
    check_file_writable,
    check_report_path,
    console_lines,
    exclusions,
    summary_line,
    write_report,
)
from mapanything.opv2v.check.run import CheckOptions, run_checks
from mapanything.opv2v.exclude import check_replaceable, write_exclude
from mapanything.opv2v.layout import SPLITS, DepthLayout
from mapanything.tools.options import selection


def options_from(arguments: argparse.Namespace) -> CheckOptions:
    """The options of the check, checked themselves for what can be known before any work."""
    if arguments.report:
        check_report_path(arguments.report)
    if arguments.write_exclude:
        check_file_writable(arguments.write_exclude)
        check_replaceable(arguments.write_exclude)
    depth_root = arguments.depth_root
    # The mount's folder is there even where nothing is mounted.
    if depth_root is None and arguments.root == IMAGES and any((DEPTH / split).is_dir() for split in SPLITS):
        depth_root = DEPTH
    return CheckOptions(
        root=arguments.root,
        depth=DepthLayout(depth_root, arguments.depth_pattern) if depth_root else None,
        selection=selection(arguments),
        level="quick" if arguments.quick else "deep" if arguments.deep else "standard",
        jobs=arguments.jobs,
        progress=True if arguments.progress else False if arguments.no_progress else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 or 1, the verdict."""
    parsed = CHECK_DATA.parse(arguments)
    options = options_from(parsed)
    signal.signal(signal.SIGTERM, _interrupt)  # `docker stop` and `kill` leave as cleanly as Ctrl-C
    depth = f"depth maps in {options.depth.root}" if options.depth else "no depth maps (--depth-root names them)"
    print(f"{options.root}: {options.level} check, {depth}", flush=True)
    start = time.monotonic()
    report = run_checks(options)
    for line in console_lines(report):
        print(printable(line))
    if parsed.report:
        write_report(report, parsed.report)
        print(f"report: {parsed.report}")
    if parsed.write_exclude:
        entries = exclusions(report)
        write_exclude(parsed.write_exclude, entries)
        print(f"exclude file: {parsed.write_exclude}, {len(entries)} {'entry' if len(entries) == 1 else 'entries'}")
    print(summary_line(report, time.monotonic() - start))
    return int(report.is_bad)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
