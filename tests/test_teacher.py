# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""The teacher: what it averages, when, and that nothing else moves it."""
import copy

import naive
import pytest
import torch
from algorithms import sgd, small_algorithm, train_step
from torch import nn

from us3l_mm.models import at_width
from us3l_mm.models.backbones import SlimmableResNet_CIFAR
from us3l_mm.models.necks import SlimmableProjector
from us3l_mm.models.selfsup import Teacher


def equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def student():
    backbone = SlimmableResNet_CIFAR(18, base_channels=16, stem_channels=16)
    neck = SlimmableProjector(128, 16, 8, num_layers=3, with_last_bn=False)
    return nn.ModuleList([backbone, neck]).double().train()


def move(module, seed):
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.1


def test_the_teacher_is_an_average_over_whole_parameters():
    net = student()
    teacher = Teacher(*net, momentum=0.1).double()
    move(net, 0)  # initial weights come after the teacher's construction
    expected = [p.clone() for p in net.parameters()]
    for step in range(4):
        with at_width(net, 0.5):  # the student's width is no concern
            teacher.update()
        expected = [
            0.9 * e + 0.1 * p for e, p in zip(expected, net.parameters())]
        for q, e in zip(teacher.parameters(), expected):
            torch.testing.assert_close(q.data, e.data, rtol=0, atol=1e-12)
        if step == 0:
            for q, p in zip(teacher.parameters(), net.parameters()):
                equal(q.data, p.data)
        move(net, step + 1)


def test_the_teacher_has_no_gradient_and_shares_no_memory():
    net = student()
    teacher = Teacher(*net)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in net.parameters())
    own = {p.data_ptr() for p in teacher.parameters()}
    assert not own & {p.data_ptr() for p in net.parameters()}
    views = [torch.randn(4, 3, 8, 8)] * 2
    for maps, z in teacher.float()(views, 1.0):
        assert not z.requires_grad and not maps[-1].requires_grad


def test_targets_of_the_teacher_are_those_of_the_student_at_any_width():
    """With equal weights; each view is encoded on its own."""
    net = student()
    teacher = Teacher(*net).double()
    teacher.update()
    views = [torch.randn(4, 3, 8, 8).double() for _ in range(2)]
    for width in (1.0, 0.4):
        encoded = teacher(views, width)
        for view, (maps, z) in zip(views, encoded):
            with at_width(net, width), torch.no_grad():
                expected = net[0](view)
                equal(maps, expected)
                equal(z, net[1](expected)[0])
        with at_width(net, 0.25):  # whatever the student is doing
            equal(teacher(views, width)[1][1], encoded[1][1])


@pytest.mark.parametrize('update_mode', ['sequential', 'accumulate'])
@pytest.mark.parametrize('base_method, distill_from', [('byol', 'teacher'),
                                                       ('byol', None),
                                                       ('simsiam', 'teacher')])
def test_one_update_an_iteration_before_the_targets_and_at_full_width(
        base_method, distill_from, update_mode):
    algorithm = small_algorithm(base_method, distill_from=distill_from,
                                update_mode=update_mode)
    calls, teacher = [], algorithm.teacher
    update, forward = teacher.update, teacher.forward

    def spy_update(progress):
        calls.append('update')
        update(progress)

    def spy_forward(views, subnet):
        calls.append(subnet.width)
        return forward(views, subnet)

    teacher.update, teacher.forward = spy_update, spy_forward
    train_step(algorithm,
               naive.batch()[0], sgd(algorithm, lr=0.1), [1.0, 0.6, 0.25])
    own_targets = [0.6, 0.25] if distill_from is None else []
    assert calls == ['update', 1.0, *own_targets]
    # Only the update moves the teacher: it lags behind the moved student.
    assert not torch.equal(teacher.backbone.conv1.weight,
                           algorithm.backbone.conv1.weight)


def test_a_resumed_teacher_is_not_copied_from_the_student_again():
    algorithm = small_algorithm(teacher=dict(momentum=0.25))
    algorithm.teacher.update()
    move(algorithm.backbone, 5)
    resumed = small_algorithm(teacher=dict(momentum=0.25))
    resumed.load_state_dict(copy.deepcopy(algorithm.state_dict()))
    for one in (algorithm, resumed):
        one.teacher.update()
    equal(dict(resumed.state_dict()), dict(algorithm.state_dict()))
    assert not torch.equal(resumed.teacher.backbone.conv1.weight,
                           resumed.backbone.conv1.weight)


def test_a_copy_of_the_algorithm_has_a_teacher_of_its_own_student():
    algorithm = small_algorithm()
    algorithm.teacher.update()
    before = [p.clone() for p in algorithm.teacher.parameters()]
    twin = copy.deepcopy(algorithm)
    move(twin.backbone, 3)
    twin.teacher._is_copy = False
    twin.teacher.update()
    equal(twin.teacher.backbone.conv1.weight.data,
          twin.backbone.conv1.weight.data)
    for p, q in zip(algorithm.teacher.parameters(), before):
        equal(p.data, q.data)


def test_the_student_is_saved_once():
    algorithm = small_algorithm()
    keys = list(algorithm.state_dict())
    of_teacher = [k for k in keys if k.startswith('teacher.')]
    twins = {k[len('teacher.'):] for k in of_teacher}
    assert twins == {k for k in keys if k.startswith(('backbone.', 'neck.'))}


def test_the_momentum_of_a_paper_rises_to_one_along_half_a_cosine():
    net = student()
    teacher = Teacher(*net, momentum=0.01, final_momentum=0.0).double()
    teacher.update()
    for progress, kept in ((0.0, 0.99), (1 / 3, 0.9925), (0.5, 0.995),
                           (2 / 3, 0.9975), (1.0, 1.0)):
        before = [p.clone() for p in teacher.parameters()]
        move(net, int(100 * progress))
        teacher.update(progress)
        for p, q, s in zip(teacher.parameters(), before, net.parameters()):
            torch.testing.assert_close(p.data, kept * q + (1 - kept) * s,
                                       rtol=0, atol=1e-12)


@pytest.mark.parametrize('momentum', [0.99, 1.0, -0.1, float('nan')])
def test_a_momentum_in_the_other_sense_is_refused(momentum):
    with pytest.raises(ValueError, match='share of the student that enters'):
        Teacher(*student(), momentum=momentum)
    with pytest.raises(ValueError, match='^teacher.final_momentum is the sha'):
        Teacher(*student(), final_momentum=momentum)
