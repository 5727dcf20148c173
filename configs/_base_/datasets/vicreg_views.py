# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
# What the views of dense + gated SSL have in common behind the crop
# (reference).
colours = [
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
solarize_and_flip = [
    dict(type='Solarize', thr=128, prob=0.1),
    dict(type='RandomFlip', prob=0.5)
]
