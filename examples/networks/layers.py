"""What several networks share: a convolution, and the check of the sources."""

from torch import Tensor, nn


def reflect_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """3x3, stride 1, the border reflected, so that the size is kept."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, padding_mode="reflect")


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
