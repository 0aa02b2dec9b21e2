"""The check of the source images that all networks share."""

from torch import Tensor


def check_sources(visible: Tensor, infrared: Tensor, *, minimum: int, reason: str) -> None:
    """Raise a ValueError unless both are (N, 1, H, W), of one shape, H and W at least `minimum`.

    `reason` says why smaller images do not work, and begins with the network's name.
    """
    for name, image in (("visible", visible), ("infrared", infrared)):
        if image.ndim != 4 or image.shape[1] != 1:
            raise ValueError(
                f"`{name}` must have shape (N, 1, H, W), got {tuple(image.shape)}; "
                "pass the luminance of a colour image"
            )
    if visible.shape != infrared.shape:
        raise ValueError(
            f"`visible` and `infrared` must have the same shape, got {tuple(visible.shape)} "
            f"and {tuple(infrared.shape)}; crop or resize the images of a pair together"
        )
    if min(visible.shape[2:]) < minimum:
        height, width = visible.shape[2:]
        raise ValueError(
            f"{reason}, so the sources must be at least {minimum} x {minimum} pixels, "
            f"got {height} x {width}; use larger images"
        )
