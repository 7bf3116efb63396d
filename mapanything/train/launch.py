"""Starts a run's processes on this node with torch's elastic launcher, and leaves with the exit code that tells how it went.

Each process is `python -m mapanything.train.training` with the same arguments; the launcher passes signals on to them. A
process that ends badly ends the others (watch.py); nothing is restarted, because a failure here is one that comes again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mapanything.train.distributed import LAUNCHED, NOTE, Layout

SAVING_SECONDS = 60  # what processes have to save and leave after SIGTERM, before they are killed


def launch(layout: Layout, arguments: Sequence[str]) -> int:
    """Runs `training` with these arguments in the layout's processes of this node; the exit code of the first that failed."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say it in fewer words
    here = layout.processes_here
    os.environ |= {LAUNCHED: "1", NOTE: layout.note, "PYTHONUNBUFFERED": "1"}
    # One thread for small CPU work per core would be as many per process.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(8, (os.cpu_count() or 1) // here))))
    single = layout.nodes == 1
    if single:
        # Host names that don't resolve are common in labs; one node needs none.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=layout.nodes,
        max_nodes=layout.nodes,
        nproc_per_node=here,
        run_id="mapanything",
        rdzv_backend="c10d" if single else "static",
        rdzv_endpoint="127.0.0.1:0" if single else str(layout.rendezvous),
        rdzv_configs={"timeout": int(layout.timeout.total_seconds())} | ({} if single else {"rank": layout.node_rank}),
        local_addr="127.0.0.1" if single else None,
        max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP",
    )
    if hasattr(config, "shutdown_timeout"):  # torch 2.10 knows no other than 30 seconds
        config.shutdown_timeout = SAVING_SECONDS
    try:
        elastic_launch(config, sys.executable)("-m", "mapanything.train.training", *arguments)
    except SignalException as caught:
        return 128 + caught.sigval
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    return 0
