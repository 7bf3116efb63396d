"""The labels that an evaluation scores against: what they are, how many are left out, what a perfect map would score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mapanything.evaluation.metrics import depth_errors, mean
from mapanything.inference.select import SceneSample
from mapanything.opv2v.depth_root import DepthRoot
from mapanything.results.record import SceneKey


@dataclass(frozen=True, slots=True)
class SceneLabels:
    """Labels of one scene's maps, how many of them are left out, and the errors of rendered depth against the others."""

    count: int
    hidden: int
    floor: dict[str, float] | None


@dataclass(slots=True)
class Labels:
    """The labels of all scenes. `kind`: what the maps are; None: there are none, or nobody knows."""

    kind: DepthRoot | None
    scenes: dict[tuple[str, SceneKey], SceneLabels] = field(default_factory=dict)

    def note(self, mode: str, scene: SceneSample, rendered: SceneSample | None) -> None:
        """Notes a scene's labels; `rendered` is the same scene with rendered depth, where that is at hand."""
        if (mode, scene.key) not in self.scenes:  # each model reads them again
            floor = None if rendered is None else _floor(scene, rendered)
            self.scenes[mode, scene.key] = SceneLabels(scene.num_labels, scene.num_hidden, floor)

    def to_dict(self) -> dict[str, Any]:
        """Entries of the record: counts, and by mode the floor, means over scenes."""
        floors: dict[str, list[dict[str, float]]] = {}
        for (mode, _), labels in sorted(self.scenes.items(), key=lambda item: (item[0][0], str(item[0][1]))):
            if labels.floor is not None:
                floors.setdefault(mode, []).append(labels.floor)
        return {
            "maps": self.kind.to_dict() if self.kind is not None else None,
            "count": sum(labels.count for labels in self.scenes.values()),
            "left_out": sum(labels.hidden for labels in self.scenes.values()),
            "floor": {
                mode: {name: mean([floor[name] for floor in found]) for name in found[0]} for mode, found in floors.items()
            },
        }

    def text(self) -> str:
        """The same for a person."""
        said = self.to_dict()
        if not said["count"]:
            return "No depth label is known."
        share = said["left_out"] / said["count"]
        left_out = f"{share:.2%} left out, for the camera can't see them" if share else "none left out"
        parts = [f"Labels: {self.kind or 'depth maps'}; {said['count']:,}, {left_out}."]
        for mode, floor in said["floor"].items():
            parts.append(
                f"A perfect map would score AbsRel {floor['abs_rel']:.3f}, RMSE {floor['rmse_m']:.2f} m, "
                f"δ1.25 {floor['delta_1_25']:.3f} against them ({mode})."
            )
        return " ".join(parts)


def _floor(scene: SceneSample, rendered: SceneSample) -> dict[str, float]:
    labels, truth = (
        np.stack([view["pts3d_cam"][..., 2].double().numpy() for view in sample.views]) for sample in (scene, rendered)
    )
    both = (labels > 0) & (truth > 0)
    return depth_errors(truth[both], labels[both])
