# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Images with the masks of the objects in them."""
from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import cv2
import numpy as np
from matplotlib import colormaps

FONT = cv2.FONT_HERSHEY_SIMPLEX
PAPER, INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Instances:
    """The annotated or detected objects in an image of (H, W) pixels.

    Attributes:
        masks (np.ndarray): Their masks, bool, (N, H, W).
        labels (np.ndarray): Their classes, int, (N, ).
        names (tuple[str, ...]): The names of the classes.
        scores (np.ndarray, optional): Their scores, (N, ); None for
            annotations.
    """

    masks: np.ndarray
    labels: np.ndarray
    names: Tuple[str, ...]
    scores: Optional[np.ndarray] = None


def colour_of(label: int) -> Tuple[int, int, int]:
    """The BGR colour of a class, the same in every picture."""
    red, green, blue, _ = colormaps['tab10'](label % 10)
    return int(255 * blue), int(255 * green), int(255 * red)


def draw_instances(image: np.ndarray, instances: Instances,
                   scale: int = 4) -> np.ndarray:
    """``image``, (H, W, 3) BGR, enlarged, with tinted and outlined masks.

    Beside each mask stands the name of its class, and its score in percent if
    there is one.

    Returns:
        np.ndarray: uint8, (scale * H, scale * W, 3).
    """
    size = (image.shape[1] * scale, image.shape[0] * scale)
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    tags = []
    for i, mask in enumerate(instances.masks):
        if not mask.any():
            continue
        # Enlarged as a soft surface, so that the outline has no steps.
        soft = cv2.resize(mask.astype(np.float32), size,
                          interpolation=cv2.INTER_CUBIC)
        inside = (soft > 0.5).astype(np.uint8)
        colour = colour_of(int(instances.labels[i]))
        tint = inside.astype(bool)
        canvas[tint] = (0.55 * canvas[tint] + 0.45 * np.array(colour)).astype(
            np.uint8)
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP,
                                       cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour, 1, cv2.LINE_AA)
        rows, columns = np.nonzero(inside)
        text = instances.names[int(instances.labels[i])]
        if instances.scores is not None:
            text += f' {100 * instances.scores[i]:.0f}'
        tags.append((text, int(columns.min()), int(rows.min()), colour))
    for tag in tags:  # above all masks
        _draw_tag(canvas, *tag)
    return canvas


def _draw_tag(canvas: np.ndarray, text: str, x: int, y: int,
              colour: Tuple[int, int, int]) -> None:
    (width, height), _ = cv2.getTextSize(text, FONT, 0.38, 1)
    x = min(max(x, 0), max(canvas.shape[1] - width - 4, 0))
    y = max(y - 3, height + 4)
    cv2.rectangle(canvas, (x, y - height - 4), (x + width + 3, y + 1), colour,
                  -1)
    cv2.putText(canvas, text, (x + 2, y - 2), FONT, 0.38, PAPER, 1,
                cv2.LINE_AA)


def draw_grid(rows: Sequence[Tuple[str, Sequence[np.ndarray]]],
              gap: int = 8) -> np.ndarray:
    """A grid of pictures of one size, with the name of each row above it."""
    head, columns = 24, max(len(pictures) for _, pictures in rows)
    blank = np.full_like(rows[0][1][0], PAPER)
    lines = []
    for name, pictures in rows:
        line = np.hstack([
            cv2.copyMakeBorder(picture, gap + head, 0, gap, 0,
                               cv2.BORDER_CONSTANT, value=PAPER)
            for picture in [*pictures, *[blank] * (columns - len(pictures))]])
        lines.append(
            cv2.putText(line, name, (gap, gap + head - 8), FONT, 0.55, INK, 1,
                        cv2.LINE_AA))
    return cv2.copyMakeBorder(np.vstack(lines), 0, gap, 0, gap,
                              cv2.BORDER_CONSTANT, value=PAPER)
