# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional, Sequence, Tuple, Union

from mmcv.cnn import build_norm_layer
from mmpretrain.models.necks import NonLinearNeck
from torch import Tensor, nn

from us3l_mm.models.layers import SlimmableLayer, SlimmableLinear
from us3l_mm.registry import MODELS

NORM = dict(type='us3l_mm.SlimmableBatchNorm1d')


@MODELS.register_module()
class SlimmableProjector(NonLinearNeck):
    """MMPretrain's projector for a backbone of any width.

    Its output has the full size at every width, so that the embeddings of all
    widths lie in one space. In US3L (arXiv 2303.06870) only the input of the
    first linear layer narrows; in SlimCLR (2209.15525) the hidden layers do
    as well (``slice_hidden=True``).

    Args:
        in_channels, hid_channels, out_channels (int): Numbers of features at
            full width.
        with_bias (bool or sequence[bool]): Whether the hidden layers have
            biases, all of them or each. Defaults to False.
        slice_in (bool): Whether the input narrows. Defaults to True.
        slice_hidden (bool): Whether the hidden layers narrow. Defaults to
            False.
        divisor (int): Features are rounded to multiples of it. Defaults to 8.
        steps (int, optional): If given, the input narrows in this number of
            equal steps instead. An algorithm takes ``divisor``, ``steps`` and
            ``slice_in`` from the ``feature_rounding`` of its backbone.
        norm_cfg (dict, optional): A slimmable or switchable norm, or a plain
            one where the hidden layers do not narrow; None for no norms, as
            in MoCo v2. Defaults to
            ``dict(type='us3l_mm.SlimmableBatchNorm1d')``.
        **kwargs: Other arguments of
            :class:`mmpretrain.models.NonLinearNeck`.

    Shapes: a tuple of one map (N, c, H, W), or of features (N, c), to a tuple
    of one embedding (N, out_channels).
    """

    def __init__(self, in_channels: int, hid_channels: int, out_channels: int,
                 num_layers: int = 2, with_bias: Union[bool,
                                                       Sequence[bool]] = False,
                 norm_cfg: Optional[dict] = NORM, slice_in: bool = True,
                 slice_hidden: bool = False, divisor: int = 8,
                 steps: Optional[int] = None, **kwargs):
        if slice_hidden and steps is not None:
            raise ValueError(
                'slice_hidden=True needs a backbone whose features narrow in '
                f'multiples of a divisor; this one has {steps} steps.')
        count = max(num_layers - 1, 1)
        biases = [with_bias] * count if isinstance(with_bias,
                                                   bool) else with_bias
        if len(biases) != count:
            raise ValueError(f'with_bias is one bool or {count}, one for each '
                             f'hidden layer, got {with_bias!r}.')
        norm = NORM if norm_cfg is None else norm_cfg
        slimmable = issubclass(MODELS.get(norm['type']), SlimmableLayer)
        hidden = dict(norm, slice_channels=slice_hidden)
        super().__init__(in_channels, hid_channels, out_channels, num_layers,
                         any(biases), norm_cfg=hidden if slimmable else norm,
                         **kwargs)
        last = num_layers - 1
        if norm_cfg is None:
            for name in ('bn0', *filter(None, self.bn_names)):
                setattr(self, name, nn.Identity())
        for i, biased in enumerate(biases):
            if not biased:
                getattr(self, f'fc{i}').register_parameter('bias', None)
        for i in range(num_layers):
            reads = slice_hidden if i else slice_in
            writes = slice_hidden and i < last
            old = getattr(self, f'fc{i}')
            if reads or writes:
                setattr(
                    self, f'fc{i}',
                    SlimmableLinear(old.in_features, old.out_features, old.bias
                                    is not None, slice_in=reads,
                                    slice_out=writes, divisor=divisor,
                                    steps=None if i else steps))
        if norm_cfg and slice_hidden and hasattr(self, f'bn{last}'):
            old = getattr(self, f'bn{last}')
            setattr(
                self, f'bn{last}',
                build_norm_layer(
                    dict(hidden, slice_channels=False, affine=old.affine),
                    out_channels)[1])

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        for name in dict(self.named_parameters()):
            layer = f'{prefix}{name.rpartition(".")[0]}'
            if (name.startswith('fc') and name.endswith('.bias')
                    and f'{layer}.weight' in state_dict
                    and f'{layer}.bias' not in state_dict):
                option = f'model.{prefix}'.replace('model.teacher.', 'model.')
                raise ValueError(
                    f'The file has no {layer}.bias: it is of a run without '
                    f'biases, as ours were at first. Set {option}with_bias='
                    f'False {option}with_last_bias=False, and likewise for '
                    'neck and predictors, to load it or to go on with it.')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        # For the pooling, features such as a class token are one pixel.
        return super().forward(
            tuple(features[..., None, None] if features.ndim == 2 else features
                  for features in x))


@MODELS.register_module()
class Predictor(SlimmableProjector):
    """:class:`SlimmableProjector` of embeddings, whose input is always full.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, slice_in=False, with_avg_pool=False, **kwargs)
