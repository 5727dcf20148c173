# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""ONNX models, checked with onnxruntime."""
import io
import json
import warnings
from importlib.util import find_spec

import torch
from torch import nn

from .artifact import Artifact, SlicedNetwork, pooled

INPUT, FEATURES = 'images', 'features'
OPSET = 17


class _WithFeatures(nn.Module):
    """The feature maps of a backbone, and the last of them pooled."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        maps = self.backbone(images)
        return (*maps, pooled(maps))


def onnx_model(network: SlicedNetwork) -> Artifact:
    """A model from ``images`` to feature maps and ``features`` (N, c).

    It takes any number of images of ``input_size``. Norms are folded into
    convolutions, which changes the rounding of the outputs.

    Raises:
        ImportError: If onnx or onnxruntime is missing.
    """
    missing = [
        name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    if missing:
        raise ImportError(f'--format onnx needs {" and ".join(missing)}: pip '
                          f'install {" ".join(missing)}')

    def run(content, images):
        import onnxruntime
        session = onnxruntime.InferenceSession(
            content, providers=['CPUExecutionProvider'])
        outputs = session.run(None, {INPUT: images.numpy()})
        return [torch.from_numpy(output) for output in outputs[:-1]]

    return Artifact(
        lambda: _export(network), run, f"""\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({network.out!r})
images = np.zeros((1, {network.meta["input_channels"]}, \
{network.input_size}, {network.input_size}), np.float32)  # any number of them
features, = session.run([{FEATURES!r}], {{{INPUT!r}: images}})  \
# (1, {network.map_channels[-1]})
""")


def _export(network: SlicedNetwork) -> bytes:
    import onnx
    maps = [f'stage{i + 1}' for i in network.plain.out_indices]
    images = torch.zeros(2, network.meta['input_channels'], network.input_size,
                         network.input_size)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that PyTorch recommends needs onnxscript.
        warnings.simplefilter('ignore', DeprecationWarning)
        # The warnings say that the size of the images is fixed, which is
        # intended, and that the amount of padding is not a constant.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        warnings.filterwarnings('ignore', 'Constant folding')
        torch.onnx.export(
            _WithFeatures(network.plain).eval(), (images, ), buffer,
            input_names=[INPUT], output_names=[*maps, FEATURES], dynamic_axes={
                name: {
                    0: 'N'} for name in (INPUT, *maps, FEATURES)
            }, opset_version=OPSET, dynamo=False)
    model = onnx.load_from_string(buffer.getvalue())
    for key, value in network.meta.items():
        model.metadata_props.add(
            key=key,
            value=value if isinstance(value, str) else json.dumps(value))
    return model.SerializeToString()
