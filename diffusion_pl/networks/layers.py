"""Checks shared by the image networks."""


def image_shape(
    network: str, shape: tuple[int, ...], factor: int, remedy: str = "use fewer levels"
) -> tuple[int, int, int]:
    """(C, H, W), checked.

    Args:
        network: Name for messages.
        shape: Shape of one example.
        factor: Height and width must be multiples of it.
        remedy: What else than resizing helps, for the message.

    Raises:
        ValueError: not the shape of an image, or a height or width that cannot be halved as often as the network
            halves it; the message names the nearest valid size.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{network}: needs images of shape (C, H, W), got data of shape {tuple(shape)}")
    channels, *size = shape
    if any(length % factor for length in size):
        nearest = [max(factor, round(length / factor) * factor) for length in size]
        raise ValueError(
            f"{network}: height and width must be multiples of {factor}, got {size[0]}x{size[1]} (height x width): "
            f"the nearest valid size is {nearest[0]}x{nearest[1]}; resize the data to it or {remedy}"
        )
    return channels, size[0], size[1]
