# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# The asymmetric pair of views of BYOL at 224 pixels (reference; arXiv
# 2006.07733, appendix B).
crop_and_colour = [
    # `scale` is the output size; the crop covers 0.08 to 1 of the area
    # (reference).
    dict(
        type='RandomResizedCrop',
        scale=224,
        crop_ratio_range=(0.08, 1.0),
        backend='pillow'),
    dict(
        type='RandomApply',
        transforms=[
            dict(
                type='ColorJitter',
                brightness=0.4,
                contrast=0.4,
                saturation=0.2,
                hue=0.1,
                backend='cv2')
        ],
        prob=0.8),
    dict(
        type='RandomGrayscale',
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.2989)),  # of blue, green, red
]
# 'inf' draws the radius, 0.1 to 2 pixels, from a uniform distribution.
blur = dict(
    type='GaussianBlur', magnitude_range=(0.1, 2.0), magnitude_std='inf')
flip = dict(type='RandomFlip', prob=0.5)
view_pipeline1 = [*crop_and_colour, dict(**blur, prob=1.0), flip]
view_pipeline2 = [
    *crop_and_colour,
    dict(**blur, prob=0.1),
    dict(type='Solarize', thr=128, prob=0.2), flip
]
