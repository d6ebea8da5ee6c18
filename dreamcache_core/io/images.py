"""Images: decoding files, and conversion between Pillow and tensors (height, width, channels), 0…1."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DreamCacheError
from .failures import reason
from .names import in_words, picture_formats, picture_types

MAX_PIXELS = 64_000_000
"""The most pixels of a picture that is read: a small file can hold far more, and decoding takes gigabytes then."""

# Deeper than 8 bits. Pillow's `convert` cuts them off at 255.
_INTEGERS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_FLOATS = "F"
_WHITE_OF_16_BITS = 65535
# By how much a mask's aspect may differ from its picture's: some networks round sides to multiples of 8.
_ASPECT_TOLERANCE = 0.02

# (width, height) in pixels.
Size = tuple[int, int]


def read_image(read: Callable[[], bytes], what: str) -> Image.Image:
    """Decode an image as RGB, turned upright by its EXIF orientation, with white behind transparent parts.

    `read`: returns the bytes of the file. `what`: the image in words, for the message. Raises DreamCacheError if the
    file can't be read or decoded.
    """
    image = _to_8_bits(_decode(read, what), what, _WHITE_OF_16_BITS)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_mask(read: Callable[[], bytes], what: str, size: Size) -> Image.Image:
    """Decode a mask in greyscale, white on the subject, and resize it to the `size` of its picture.

    The mask is the alpha channel where that varies, and the brightness elsewhere. A mask of labels, 0 and 1, becomes
    black and white. Otherwise like `read_image`; also raises DreamCacheError if the mask has another aspect than its
    picture.
    """
    image = _decode(read, what)
    is_labels = image.mode in _INTEGERS and image.getextrema()[1] == 1
    grey = _brightness_or_alpha(_to_8_bits(image, what, 1 if is_labels else _WHITE_OF_16_BITS))
    darkest, brightest = grey.getextrema()
    if darkest != brightest:  # A mask of a single level has no shape.
        check_aspect(grey.size, size, what)
    if brightest == 1:
        grey = grey.point(lambda level: 255 * level)
    return grey.resize(size, Image.Resampling.BILINEAR)


def check_aspect(mask: Size, picture: Size, what: str) -> None:
    """Raise DreamCacheError unless a mask has the aspect of its picture. `what`: the mask in words."""
    (width, height), (picture_width, picture_height) = mask, picture
    one_pixel = max(picture)
    difference = abs(width * picture_height - height * picture_width)
    if difference > max(one_pixel, _ASPECT_TOLERANCE * width * picture_height):
        raise DreamCacheError(
            f"{what} is {width}×{height} pixels and its picture {picture_width}×{picture_height}, which is another "
            "shape: make the mask of the picture as it is shown, upright and uncropped."
        )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image → (height, width, 3), greyscale image → (height, width); float32, 0…1."""
    levels = np.array(image, dtype=np.float32)
    levels /= 255
    return torch.from_numpy(levels)


def to_image(tensor: torch.Tensor) -> Image.Image:
    """(height, width, 3) → RGB image, (height, width) → greyscale image. The exact inverse of `to_tensor`."""
    # Rounded, not truncated: 255 · (k / 255) can be slightly less than k.
    levels = (tensor.detach().float().cpu().clamp(0, 1) * 255).round()
    return Image.fromarray(levels.to(torch.uint8).numpy())


def planar(images: torch.Tensor) -> torch.Tensor:
    """The same images, (…, height, width, channels), laid out in memory channel by channel.

    The layout decides the order of sums in a VAE's convolutions, and so the last bits of its latents.
    """
    return images.movedim(-1, -3).contiguous().movedim(-3, -1)


def _decode(read: Callable[[], bytes], what: str) -> Image.Image:
    """Decode an image in the file's own mode, turned upright."""
    try:
        # Only of these types: Pillow would start other programs for some.
        image = Image.open(io.BytesIO(read()), formats=picture_formats())
        if image.width * image.height <= MAX_PIXELS:
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        pass  # Pillow's own limit, which is higher.
    except UnidentifiedImageError as error:
        raise DreamCacheError(
            f"{what} cannot be read: it is damaged or of a type that is not read, so save it as "
            f"{in_words(picture_types())}."
        ) from error
    except Exception as error:  # Pillow's decoders raise many types for a damaged file.
        if isinstance(error, OSError) and error.errno:
            raise DreamCacheError(f"{what} cannot be read: {reason(error)}.") from error
        raise DreamCacheError(f"{what} cannot be read: it is damaged.") from error
    raise DreamCacheError(f"{what} has more than {MAX_PIXELS / 1e6:.0f} million pixels: make it smaller.")


def _to_8_bits(image: Image.Image, what: str, white: int) -> Image.Image:
    """Greyscale of 16 bits or of floating-point numbers in 8 bits; any other image unchanged. `white`: of 16 bits."""
    if image.mode not in (*_INTEGERS, _FLOATS):
        return image
    levels = np.asarray(image).astype(np.float32) / (1 if image.mode == _FLOATS else white)
    if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1):
        raise DreamCacheError(f"{what} has levels outside black and white, or NaN: save it with 8 or 16 bits.")
    return Image.fromarray((255 * levels).round().astype(np.uint8))


def _brightness_or_alpha(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if len(set(alpha.getextrema())) == 2:
            return alpha
    return image.convert("L")
