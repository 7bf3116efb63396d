from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def spec() -> Path:
    folder = os.environ.get("MAPANYTHING_SPEC_DIR")
    if not folder:
        pytest.skip("MAPANYTHING_SPEC_DIR is not set")
    return Path(folder)
