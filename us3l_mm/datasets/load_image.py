# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Reading one image of a file."""
import os.path as osp
import warnings
from contextlib import contextmanager
from typing import Iterator, Optional

import cv2
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from us3l_mm.registry import TRANSFORMS

# What Pillow raises on a file that it does not read.
PILLOW_ERRORS = (OSError, SyntaxError, ValueError,
                 Image.DecompressionBombError)
TIFF = (b'II*\0', b'MM\0*')
ORIENTATION = 0x0112  # a tag of EXIF; 1 is upright


class UnreadableImageError(ValueError):
    """An image that cannot be decoded, or too many of them."""


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """MMCV's ``LoadImageFromFile`` with one type of error.

    The image is upright, the first one of an animation or of several pages,
    without transparency, and 16 bits become 8. Files that OpenCV shows
    otherwise, see :func:`needs_pillow`, are decoded by Pillow.

    :class:`ImageFolder` replaces an image on which the error is raised.

    Raises:
        UnreadableImageError: If the file cannot be opened or decoded.
    """

    imdecode_backend: str

    def transform(self, results: dict) -> Optional[dict]:
        path, backend = results['img_path'], self.imdecode_backend
        try:
            if backend == 'cv2' and osp.isfile(path) and needs_pillow(path):
                self.imdecode_backend = 'pillow'
            return super().transform(results)
        except (AssertionError, cv2.error, *PILLOW_ERRORS) as error:
            reason = getattr(error, 'strerror', None) or 'it is damaged'
            raise UnreadableImageError(
                f'The image {printable(path)} cannot be read ({reason}). '
                'Replace or remove it.') from error
        finally:
            self.imdecode_backend = backend


def needs_pillow(path: str) -> bool:
    """Whether OpenCV would show an image in another way than its writer.

    OpenCV 4.12 turns JPEG, PNG and TIFF files by the orientation that their
    EXIF data name, but not WebP and AVIF files. In the colours of an RGBA TIFF
    file, it turns transparent pixels black; in those of other formats it does
    not.

    Raises:
        OSError: If the file cannot be opened.
    """
    with open(path, 'rb') as file:
        head = file.read(21)
    tiff = head.startswith(TIFF)
    # The flag of a WebP file for EXIF data. Pillow would read the whole file.
    webp = head[8:16] == b'WEBPVP8X' and head[-1] & 0x08
    if not (tiff or webp or head[4:8] == b'ftyp'):
        return False
    try:
        with opened(path) as image:
            return (image.mode == 'RGBA' if tiff else image.getexif().get(
                ORIENTATION, 1) != 1)
    except PILLOW_ERRORS:
        return False


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Pillow's image of a file, whose pixels are not read yet.

    Raises:
        PILLOW_ERRORS: If Pillow does not know it.
    """
    with warnings.catch_warnings():  # of a large image
        warnings.simplefilter('ignore')
        with Image.open(path) as image:
            yield image


def printable(path: str) -> str:
    r"""``path`` with ``\xff`` for a byte that is not UTF-8, for the log."""
    return path.encode(errors='surrogateescape').decode(
        errors='backslashreplace')
