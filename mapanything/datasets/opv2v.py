"""The data sets' import path, and the group's self-check as a script:

python mapanything/datasets/opv2v.py --root R --depth_root D --max_scenes 1     loads one scene and says what is in it
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script, as the group's notes do: the repository is not on the path then
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mapanything.datasets.scenes import CoopOptions, OPV2VCoopDataset, OPV2VDataset, OPV2VScenes, SceneOptions
from mapanything.errors import run_command

__all__ = ["CoopOptions", "OPV2VCoopDataset", "OPV2VDataset", "OPV2VScenes", "SceneOptions", "main"]


def main() -> int:
    """The self-check of the group's notes: loads scenes and prints what is in the first."""
    import argparse

    parser = argparse.ArgumentParser(description="Loads OPV2V scenes as training does and says what is in the first one.")
    parser.add_argument("--root", default="data/opv2v_images", help="image root (default: %(default)s)")
    parser.add_argument("--depth_root", "--depth-root", help="depth root (default: no depth)")
    parser.add_argument("--split", action="append", help="a split; default: all that are there")
    parser.add_argument("--max_scenes", "--max-scenes", type=int, help="keep the first so many scenes")
    parser.add_argument("--coop", action="store_true", help="scenes of all vehicles of a timestamp, 1 agent or more")
    args = parser.parse_args()
    common: dict[str, Any] = {
        "split": args.split,
        "max_scenes": args.max_scenes,
        "allow_tests_only": True,
        "progress": True,
    }
    if args.coop:
        options: dict[str, Any] = {"coop_min_agents": 1, "coop_min_num_views": 1, "coop_max_num_views": None}
        dataset: OPV2VScenes = OPV2VCoopDataset(args.root, args.depth_root, num_views=28, **options, **common)
    else:
        dataset = OPV2VDataset(args.root, args.depth_root, allow_variable_view_count=True, **common)
    views = dataset[0]
    print(f"{len(dataset)} scenes")
    print(f"first: {views[0]['label']}, {len(views)} views of {len({v['agent'] for v in views})} agents")
    for view in views:
        depth = view["depth_along_ray"][view["valid_mask"]]
        known = f"depth {depth.min():.1f} to {depth.max():.1f} m, " if len(depth) else "no depth, "
        print(
            f"  {view['instance']}: img {tuple(view['img'].shape)}, {known}"
            f"{100 * view['valid_mask'].float().mean():.1f} % of pixels known, at "
            + " ".join(f"{x:.2f}" for x in view["camera_pose_trans"].tolist())
        )
    return 0


if __name__ == "__main__":
    run_command(main)
