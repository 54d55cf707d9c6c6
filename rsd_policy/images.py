"""Image operations that recording, training and inference must do alike."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def resize_frame(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Area-resize a uint8 [H, W, 3] frame to [size, size, 3]; the demonstrations were stored through this function."""
    if frame.shape[:2] == (size, size):
        return frame
    return np.asarray(cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
