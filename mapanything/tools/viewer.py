"""Data and predictions in the browser: clouds, boxes, cameras of any frame, playback, snapshots.

    python -m mapanything.tools.viewer                            the data set, on http://localhost:8080
    python -m mapanything.tools.viewer --predictions DIR          with what `./invoke infer` wrote
    python -m mapanything.tools.viewer --rrd FILE.rrd             no server: a recording for Rerun's own viewer

What is not named (split, scenario, agent, frame) is the first there is.
"""

from __future__ import annotations

import contextlib
import getpass
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from mapanything.cli.pictures import VIEWER
from mapanything.errors import run_command
from mapanything.tools.options import selection
from mapanything.viewer.frames import Catalog


def main(argv: Sequence[str] | None = None) -> int:
    args = VIEWER.parse(argv)
    catalog = Catalog(args.root, args.predictions)
    start = catalog.first(selection(args))
    if args.rrd is not None:
        from mapanything.viewer.recording import write_recording

        frames = (args.frame,) if args.frame else catalog.frames(start.split, start.scenario, start.agent)
        count = write_recording(args.rrd, catalog, start, frames, lambda line: print(f"note: {line}", file=sys.stderr))
        print(f"{args.rrd}: {count} of {len(frames)} frames of {start.split}/{start.scenario}/{start.agent}")
        return 0

    from mapanything.viewer.gate import is_local
    from mapanything.viewer.server import Viewer

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    names = {name.lower() for name in args.name or ()}
    if not is_local(args.host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    viewer = Viewer(catalog, start, args.host, args.port, names=names)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            if not is_local(args.host):
                print(f"warning: bound to {args.host}: whoever reaches port {viewer.port} sees the data", file=sys.stderr)
            print("\n".join(address_lines(args.host, viewer.port)), flush=True)
            threading.Event().wait()
    finally:
        viewer.close()
    return 0


def address_lines(host: str, port: int) -> list[str]:
    """The lines that say where the viewer is, and how it is reached from elsewhere."""
    everywhere = host in ("0.0.0.0", "::")
    shown = "localhost" if everywhere or host in ("127.0.0.1", "::1") else f"[{host}]" if ":" in host else host
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = "USER"
    return [
        f"viewer: http://{shown}:{port}  (Ctrl-C ends it)",
        f"from another machine: ssh -L {port}:{shown}:{port} {user}@{socket.gethostname()}, then http://localhost:{port}",
    ]


if __name__ == "__main__":
    run_command(main)
