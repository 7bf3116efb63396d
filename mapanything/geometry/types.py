"""Names of types that every room uses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Floats = NDArray[np.floating]  # float32 where memory counts, else float64
