"""Pictures as PNG files, GIFs and MP4s; no display is needed.

    python -m mapanything.tools.viz             the newest run or prediction, else the first frame of the mounted data
    python -m mapanything.tools.viz pose        a timestamp from above and in 3D: clouds, boxes, cameras, paths of all agents
    python -m mapanything.tools.viz cloud       LiDAR, a prediction or any .pcd/.ply: from above, behind, through each camera
    python -m mapanything.tools.viz boxes       the same with the vehicles' boxes
    python -m mapanything.tools.viz compare     a prediction beside, over and against the LiDAR, or two cloud files
    python -m mapanything.tools.viz depth       depth maps below their images; predicted ones below those
    python -m mapanything.tools.viz frame       LiDAR points and boxes over the four images of one agent
    python -m mapanything.tools.viz sequence    pose, cloud or boxes over many frames

What is not named (split, scenario, agent, frame) is the first there is. docs/pictures.md shows all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from mapanything.cli.pictures import VIZ
from mapanything.errors import run_command
from mapanything.tools.viz_newest import draw_newest
from mapanything.tools.viz_predictions import compare, depth
from mapanything.tools.viz_scenes import boxes, cloud, frame, pose
from mapanything.tools.viz_sequence import sequence

KINDS = {kind.__name__: kind for kind in (pose, cloud, boxes, compare, depth, frame, sequence)}


def main(argv: Sequence[str] | None = None) -> int:
    args = VIZ.parse(argv)
    return KINDS[args.kind](args) if args.kind else draw_newest(args)


if __name__ == "__main__":
    run_command(main)
