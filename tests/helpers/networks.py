"""The configs of the networks that tests build."""

from __future__ import annotations

from mapanything.models.config import architecture

TINY, V1, V1_1 = (architecture(name) for name in ("mapanything_tiny", "mapanything_v1", "mapanything"))
