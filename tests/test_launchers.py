# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""However two processes are started, they train the same network."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched import launched
from lives import cfg_of, finish, free_port, ranks, run_tool, start

from us3l_mm.apis.launching.processes import environment

ROOT = Path(__file__).parents[1]
TRAIN, DIST_TRAIN = ROOT / 'tools/train.py', ROOT / 'tools/dist_train.sh'

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.skipif(torch.cuda.is_available(),
                       reason='says what happens without a GPU')]


def checkpoint(work_dir) -> tuple:
    """Weights and momenta of the last checkpoint."""
    content = torch.load(work_dir / 'epoch_4.pth', weights_only=False)
    return content['state_dict'], {
        str(key): state['momentum_buffer']
        for key, state in content['optimizer']['state'].items()}


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """A run of two processes, and its config as a file."""
    folder = tmp_path_factory.mktemp('two')
    assert finish(*ranks(folder, folder / 'run', [(), ()])) == [0, 0]
    return folder


def write_config(two, name, **changes) -> Path:
    cfg = cfg_of(
        'unused', model_wrapper_cfg=dict(
            type='us3l_mm.MultiPassDistributedDataParallel'), **changes)
    cfg.dump(two / name)
    return two / name


def assert_same(two, work_dir):
    for one, other in zip(checkpoint(two / 'run'), checkpoint(work_dir)):
        assert one.keys() == other.keys() and one
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


def variables(launcher, rank, folder, port) -> dict:
    """What the launcher would set for one of two processes."""
    if launcher == 'mpi':
        return dict(OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_SIZE='2',
                    OMPI_COMM_WORLD_LOCAL_RANK=str(rank),
                    OMPI_COMM_WORLD_LOCAL_SIZE='2', MASTER_PORT=port)
    (folder / 'scontrol').write_text(
        '#!/bin/sh\ntest "$1 $2 $3" = "show hostnames here[1-2]" && '
        'printf "127.0.0.1\\nnowhere\\n"\n')
    (folder / 'scontrol').chmod(0o755)
    return dict(SLURM_PROCID=str(rank), SLURM_NTASKS='2', MASTER_PORT=port,
                SLURM_LOCALID=str(rank), SLURM_NODELIST='here[1-2]',
                PATH=f'{folder}:{os.environ["PATH"]}')


@pytest.mark.parametrize('launcher', ['mpi', 'slurm'])
def test_mpi_and_slurm_on_cpus(two, tmp_path, launcher):
    config, port = write_config(two, 'cfg.py'), free_port()
    arguments = [
        config, '--launcher', launcher, '--work-dir', tmp_path / 'run',
        '--no-pin-memory']
    logs = [tmp_path / f'{rank}.log' for rank in range(2)]
    codes = finish(*(start(log, run_tool, TRAIN, arguments,
                           variables(launcher, rank, tmp_path, port))
                     for rank, log in enumerate(logs)))
    assert codes == [0, 0], '\n'.join(log.read_text() for log in logs)
    assert 'No GPU: 2 processes work on CPUs' in logs[0].read_text()
    assert 'No GPU' not in logs[1].read_text()
    assert_same(two, tmp_path / 'run')


@pytest.mark.parametrize('launcher, variable, advice',
                         [('pytorch', 'RANK', 'torchrun'),
                          ('slurm', 'SLURM_PROCID', 'srun'),
                          ('mpi', 'OMPI_COMM_WORLD_RANK', 'mpirun')])
def test_a_launcher_that_did_not_start_it_is_an_error(monkeypatch, launcher,
                                                      variable, advice):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=f'variable {variable},.*{advice}'):
        environment(launcher)


def test_several_machines_need_the_address_of_the_first(monkeypatch):
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    for name, value in dict(RANK=1, SIZE=2, LOCAL_RANK=0,
                            LOCAL_SIZE=1).items():
        monkeypatch.setenv(f'OMPI_COMM_WORLD_{name}', str(value))
    with pytest.raises(ValueError, match='MASTER_ADDR: the name of the mach'):
        environment('mpi')
    monkeypatch.setenv('MASTER_ADDR', 'first')
    assert environment('mpi') == dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='0',
                                      MASTER_ADDR='first', MASTER_PORT='29500')


def dist_train(config, work_dir, processes=2, **env) -> subprocess.Popen:
    return subprocess.Popen(
        [
            'bash',
            str(DIST_TRAIN),
            str(config),
            str(processes), '--work-dir',
            str(work_dir)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={
            **os.environ, 'OMP_NUM_THREADS': '1',
            'PYTHON': sys.executable,
            'PYTHONPATH': str(ROOT / 'tests'),
            'PORT': free_port(),
            **env})


def test_one_process_tells_a_mistake_and_no_traceback_follows(two, tmp_path):
    cfg = write_config(two, 'mistaken.py', **{
        'model.backbone.frozen_stages': 1})
    code, output = launched(tmp_path, DIST_TRAIN, cfg, 2, '--work-dir',
                            tmp_path / 'run')
    assert code == 1
    assert output.count('train.py: backbone.frozen_stages=1') == 1
    # The launcher tells of its own processes by number: "process 13995".
    assert not re.search(r'\bprocess 1\b', output)
    assert 'Traceback' not in output
    assert not [*tmp_path.glob('run/*')]


def with_a_loss(two) -> Path:
    """A config whose rank 1 is killed in the third of four epochs, once."""
    cfg = write_config(two, 'lossy.py')
    text = cfg.read_text() + (
        "custom_imports['imports'].append('lives')\n"
        "custom_hooks = [dict(type='mmengine.DieOnce', rank=1, iteration=4)]"
        '\n')
    cfg.write_text(text)
    return cfg


@pytest.mark.slow
def test_a_lost_process_ends_the_run_by_name(two, tmp_path):
    process = dist_train(with_a_loss(two), tmp_path / 'run')
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert re.search('exitcode *: -9', output) and 'SIGKILL' in output
    assert (tmp_path / 'run/epoch_2.pth').exists()
    assert not (tmp_path / 'run/epoch_3.pth').exists()


@pytest.mark.slow
def test_an_elastic_run_restarts_and_ends_with_the_same_bits(two, tmp_path):
    process = dist_train(with_a_loss(two), tmp_path / 'run', MAX_RESTARTS='2')
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    assert 'training starts from scratch' in output  # the first time
    assert re.search('checkpoint by local backend from path: .*epoch_2.pth',
                     output)
    assert_same(two, tmp_path / 'run')


@pytest.mark.slow
def test_two_machines(two, tmp_path):
    """Two agents of one process each, on this machine."""
    config, port = write_config(two, 'cfg.py'), free_port()
    agents = [
        dist_train(config, tmp_path / 'run', 1, NNODES='2',
                   NODE_RANK=str(node), PORT=port) for node in range(2)]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert_same(two, tmp_path / 'run')
