# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from us3l_mm.models.layers import SlimmableLayer


class ChecksItsWeights:
    """Mix-in of a backbone that refuses weights of another network.

    MMEngine loads with ``strict=False`` and only logs what does not fit, so
    a checkpoint of another depth would leave a network half random. Here a
    missing parameter or one of another shape raises ValueError.
    """

    # A copy of the backbone inside a teacher may be absent from a file.
    weights_required = True

    # The `SlicingRecord` of a network of a single width, which takes over
    # weights of the full one.
    slicing_record = None

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if self.slicing_record is not None:
            self.slicing_record.slice_parameters(self, state_dict, prefix)
        for name, layer in self.named_modules():
            if isinstance(layer, SlimmableLayer):
                layer.adapt_file(state_dict, f'{prefix}{name}.')
        if (self._check_parameters(state_dict, prefix)
                and self.slicing_record is not None):
            self.slicing_record.pick_statistics(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_parameters(self, state_dict, prefix) -> bool:
        """Whether there are weights for this backbone; raises on others."""
        own = {
            prefix + name: tuple(parameter.shape)
            for name, parameter in self.named_parameters()
        }
        found = own.keys() & state_dict.keys()
        if found or self.weights_required:
            missing = sorted(own.keys() - found)
            misfit = sorted(key for key in found
                            if tuple(state_dict[key].shape) != own[key])
            unknown = sorted(
                key for key in state_dict
                if key.startswith(prefix) and key.endswith('.weight')
                and key[len(prefix):].split('.')[0] in self._modules
                and key not in own)
            if missing or misfit or unknown:
                raise ValueError(
                    self._misfit_message(state_dict, own, prefix, missing,
                                         misfit, unknown))
        return bool(found)

    def _identity(self) -> str:
        width = getattr(self, 'width', None)
        return (f'depth={getattr(self, "depth", "?")}' +
                ('' if width is None else f', width={width:g}'))

    def _misfit_message(self, state_dict, own, prefix, missing, misfit,
                        unknown) -> str:
        lines = [
            f'These weights are not those of this {type(self).__name__}'
            f'({self._identity()}), whose '
            f'{len(own)} parameters are called {prefix or "(no prefix)"}'
            f'...: {len(missing)} are missing, {len(misfit)} have '
            f'another shape, {len(unknown)} belong to other layers.'
        ]
        lines += [f'  missing: {key} {own[key]}' for key in missing[:3]]
        lines += [
            f'  shape: {key} is {tuple(state_dict[key].shape)}, needed '
            f'{own[key]}' for key in misfit[:3]
        ]
        lines += [f'  of another network: {key}' for key in unknown[:3]]
        lines.append(
            'Use the checkpoint of a network with the same depth and channels'
            ', or build this one like the checkpoint (backbone.depth).'
            if len(missing) < len(own) else
            'None of them is in the file: is its prefix another one? '
            f'It holds for instance {sorted(state_dict)[:2]}.')
        return '\n'.join(lines)
