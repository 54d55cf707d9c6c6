"""What to do with a decoded image before the policy sees it: rotate, mirror, crop, resize."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsd_policy.errors import ObservationError

WITHOUT_SIZE = ("rotate_180", "mirror")
WITH_SIZE = {"crop": 4, "resize": 2}
HELP = "rotate_180, mirror, {crop: [left, top, width, height]} or {resize: [width, height]}"


@dataclass(frozen=True)
class Operation:
    """One step: rotate_180, mirror (left-right), crop (left, top, width, height; px) or resize (width, height; px)."""

    name: str
    size: tuple[int, ...] = ()


def parse_operation(item: object) -> Operation:
    """An entry of a contract's list of operations.

    Raises:
        ValueError: what was expected and what came.
    """
    if isinstance(item, str) and item in WITHOUT_SIZE:
        return Operation(item)
    if isinstance(item, dict) and len(item) == 1:
        ((name, size),) = item.items()
        if name in WITH_SIZE and isinstance(size, list) and len(size) == WITH_SIZE[name]:
            whole = all(type(value) is int and 0 <= value <= 16384 for value in size)
            if whole and min(size[-2:]) > 0:
                return Operation(name, tuple(size))
    raise ValueError(f"expected {HELP}, got {item!r}")


def apply_operations(image: NDArray[np.uint8], operations: tuple[Operation, ...], camera: str) -> NDArray[np.uint8]:
    """Apply the operations in order.

    Args:
        image: uint8 [H, W, 3].
        camera: its name, for messages.

    Returns:
        uint8 [H', W', 3]; a view of the argument where no pixel had to be computed.

    Raises:
        ObservationError: the image is smaller than a crop.
    """
    for operation in operations:
        if operation.name == "rotate_180":
            image = image[::-1, ::-1]
        elif operation.name == "mirror":
            image = image[:, ::-1]
        elif operation.name == "crop":
            left, top, width, height = operation.size
            if left + width > image.shape[1] or top + height > image.shape[0]:
                raise ObservationError(
                    f"image '{camera}': expected at least {left + width} x {top + height} pixels for its crop, "
                    f"got {image.shape[1]} x {image.shape[0]}; correct 'crop' in the contract"
                )
            image = image[top : top + height, left : left + width]
        else:
            import cv2

            # area averaging when it shrinks: what thumbnails of other sizes look like without aliasing
            smaller = operation.size[0] < image.shape[1] or operation.size[1] < image.shape[0]
            how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            image = cv2.resize(np.ascontiguousarray(image), operation.size, interpolation=how)
    return image
