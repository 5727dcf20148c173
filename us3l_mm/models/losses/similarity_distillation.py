# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from us3l_mm.models.layers import at_least_single
from us3l_mm.registry import MODELS
from .similarities import check_temperature

KINDS, SOURCES = ('kl', 'mse', 'decoupled'), ('logits', 'embeddings')


@MODELS.register_module()
class SimilarityDistillation(nn.Module):
    """Match the similarities that a wider network gives to the same images.

    The logits of a row are the cosines of one image with all keys, which are
    compared as distributions:

    * 'kl': T_s^2 KL(softmax(t / T_t) || softmax(s / T_s)), the mean over rows.
      SlimCLR has the cross entropy instead, which has the same gradient and
      differs by the entropy of the teacher, a constant that would hide it
      (arXiv 2209.15525; SEED, 2101.04731).
    * 'mse': the mean squared difference.
    * 'decoupled': T^2 (a KL of own and other classes + b KL among the other
      classes), with a = 1, b = 0.5 (DKD, arXiv 2203.08679).

    Args:
        kind (str): 'kl', 'mse' or 'decoupled'. Defaults to 'kl'.
        on (str): 'logits', or 'embeddings' to compare L2-normalised embeddings
            instead. Defaults to 'logits'.
        temperature (float): T_s. Cosines are not divided by the temperature
            of the contrastive loss. Defaults to 5.0.
        teacher_temperature (float, optional): T_t. Defaults to T_s.
        normalise (bool): Whether each row is standardised and doubled first,
            so that the scale of its logits does not matter (ATKD). Defaults
            to False.
    """

    def __init__(self, kind: str = 'kl', on: str = 'logits',
                 temperature: float = 5.0,
                 teacher_temperature: Optional[float] = None,
                 normalise: bool = False):
        super().__init__()
        for name, value, allowed in (('kind', kind, KINDS), ('on', on,
                                                             SOURCES)):
            if value not in allowed:
                raise ValueError(f'{name} of {type(self).__name__} is one of '
                                 f'{allowed}, got {value!r}.')
        if kind == 'decoupled' and on == 'embeddings':
            raise ValueError(
                "kind='decoupled' tells the class of each image from the "
                "others, which embeddings do not have. Set on='logits'.")
        self.kind, self.on, self.normalise = kind, on, normalise
        self.temperature = check_temperature(self, temperature)
        self.teacher_temperature = check_temperature(
            self, temperature
            if teacher_temperature is None else teacher_temperature)

    def target(self, teacher: Tensor) -> Tensor:
        """What :meth:`forward` compares with, of a wider network (N, C).

        It is the same for all narrower networks. The teacher gets no gradient.
        """
        return self._comparable(teacher.detach(), self.teacher_temperature)

    def _comparable(self, logits: Tensor, temperature: float) -> Tensor:
        """What is compared: log-probabilities, or the values themselves."""
        logits = at_least_single(logits)
        if self.normalise:
            logits = 2 * F.layer_norm(logits, logits.shape[1:])
        if self.kind == 'mse':
            return logits
        return F.log_softmax(logits / temperature, dim=1)

    def forward(self, student: Tensor, target: Tensor, own: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            student (Tensor): (N, C).
            target (Tensor): That of the teacher, from :meth:`target`, (N, C).
            own (Tensor): For each row the class of its own image, (N).
        """
        student = self._comparable(student, self.temperature)
        if self.kind == 'mse':
            return F.mse_loss(student, target)
        scale = self.temperature**2
        if self.kind == 'kl':
            return scale * _kl(student, target)
        own = own[:, None]
        binary = _kl(*(_own_or_other(x, own) for x in (student, target)))
        rest = _kl(*(_without(x, own).log_softmax(dim=1)
                     for x in (student, target)))
        return scale * (binary + 0.5 * rest)

    def extra_repr(self) -> str:
        return (f'kind={self.kind!r}, on={self.on!r}, '
                f'temperature={self.temperature}, '
                f'teacher_temperature={self.teacher_temperature}, '
                f'normalise={self.normalise}')


def _kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(t || s) of log-probabilities (N, C), the mean over rows."""
    return F.kl_div(log_s, log_t, reduction='batchmean', log_target=True)


def _own_or_other(logs: Tensor, own: Tensor) -> Tensor:
    """Log-probabilities (N, 2) of the own class and of all others."""
    others = _without(logs, own).logsumexp(dim=1, keepdim=True)
    return torch.cat([logs.gather(1, own), others], dim=1)


def _without(logs: Tensor, own: Tensor) -> Tensor:
    """The columns (N, C - 1) of all classes but the own one."""
    classes = torch.arange(logs.shape[1], device=logs.device)
    return logs[classes != own].view(len(logs), -1)
