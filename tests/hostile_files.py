# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Files that would execute code, exhaust memory or corrupt it when read."""
import builtins
import io
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import torch
import yaml
from mmengine.logging import HistoryBuffer

WEIGHTS = {'backbone.conv1.weight': torch.ones(4, 3)}
META = dict(iter=1, epoch=1)


class Calls:
    """Pickled as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Builds:
    """Pickled as a new object of ``kind`` that gets a state."""

    def __init__(self, kind, args, state):
        self.call = kind, args, state

    def __reduce__(self):
        return self.call


class Persistent(pickle.Pickler):
    """Writes tuples that begin with 'pid' as persistent ids."""

    def persistent_id(self, obj):
        return obj if isinstance(obj, tuple) and obj[:1] == ('pid', ) else None


def torch_file(zipped=True, **extra) -> bytes:
    """A checkpoint as ``torch.save`` writes it."""
    file = io.BytesIO()
    torch.save({
        'state_dict': WEIGHTS,
        'meta': META,
        **extra}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def parts_of(content: bytes) -> dict:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(parts, **options) -> bytes:
    """A zip archive of (name, content)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', **options) as out:
        for name, content in parts:
            out.writestr(name, content)
    return file.getvalue()


def with_pickle(code: bytes) -> bytes:
    """A checkpoint whose pickle is ``code``."""
    parts = parts_of(torch_file())
    return archive((name, code if name.endswith('data.pkl') else content)
                   for name, content in parts.items())


def changed_pickle(old: bytes, new: bytes) -> bytes:
    parts = parts_of(torch_file())
    [name] = [name for name in parts if name.endswith('data.pkl')]
    assert old in parts[name]
    return with_pickle(parts[name].replace(old, new))


def chain(trace: str) -> bytes:
    """exec, reached by getattr of a type that MMEngine allows.

    getattr(getattr(getattr, '__self__'), 'exec')(code)
    """
    code = f'open({trace!r}, "w")'.encode()
    return (b'\x80\x02cbuiltins\ngetattr\nq\x00(h\x00(h\x00X\x08\x00\x00\x00'
            b'__self__tRX\x04\x00\x00\x00exectR(X' +
            struct.pack('<I', len(code)) + code + b'tR.')


def text(word: str) -> bytes:
    """The opcode that pushes ``word``."""
    return b'X' + struct.pack('<I', len(word)) + word.encode()


def chain_in_checkpoint(trace: str) -> bytes:
    """A whole checkpoint, which a run could resume from, around the chain."""
    parts = parts_of(torch_file())
    [name] = [name for name in parts if name.endswith('data.pkl')]
    # The calls come first, and their result is dropped from the stack.
    return with_pickle(b'\x80\x02' + chain(trace)[2:-1] + b'0' +
                       parts[name][2:])


def history(**state) -> HistoryBuffer:
    values = HistoryBuffer([1.0], [1])
    return Builds(HistoryBuffer, (), {**vars(values), **state})


def tar(trace: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as out:
        content = pickle.dumps(Calls(open, trace, 'w'), 2)
        for name in ('\x80', 'sys_info', 'pickle', 'storages', 'tensors'):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), file)
    return file.getvalue()


def persistent() -> bytes:
    file = io.BytesIO()
    Persistent(file, 2).dump(dict(state_dict=('pid', os.system, 'true')))
    return with_pickle(file.getvalue())


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def old_format(trace: str) -> bytes:
    return torch_file(False, more=Calls(open, trace, 'w'))


def bomb() -> bytes:
    """A compressed part of 16 MB in a file of 16 KB."""
    parts = parts_of(torch_file())
    [name] = [name for name in parts if name.endswith('data/0')]
    parts[name] = bytes(1 << 24)
    return archive(parts.items(), compression=zipfile.ZIP_DEFLATED)


def repeated() -> bytes:
    parts = parts_of(torch_file())
    [name] = [name for name in parts if name.endswith('data.pkl')]
    return archive([*parts.items(), (name, pickle.dumps({}, 2))])


def two_folders() -> bytes:
    return archive([*parts_of(torch_file()).items(), ('../../x', b'')])


def overlapping() -> bytes:
    """A directory that lists the same bytes a thousand times."""
    content = archive([('a/data.pkl', b'x' * 50_000)])
    end = content.rindex(b'PK\x05\x06')
    start = content.rindex(b'PK\x01\x02')
    entries = b''.join(content[start:end].replace(b'data.pkl', b'%08d' %
                                                  number)
                       for number in range(999))
    directory = content[start:end] + entries
    return content[:start] + directory + struct.pack(
        '<4s4H2LH', b'PK\x05\x06', 0, 0, 1000, 1000, len(directory), start, 0)


def expanded() -> bytes:
    """A tensor of 40 GB over the memory of one number."""
    return torch_file(
        state_dict={'weight': torch.ones(1).expand(100_000, 100_000)})


# A number of elements and a size in the pickle of WEIGHTS, and a huge one.
HUGE = b'J\xff\xff\xff\x7f'


def hostile(trace: str) -> dict:
    """All files by name; whatever executes makes the file ``trace``."""
    call = Calls(open, trace, 'w')
    code = f'open({trace!r}, "w")'
    opener = f'cbuiltins\nopen\n(V{trace}\nVw\ntR'.encode()
    return {
        'open':
        torch_file(more=call),
        'open, old format':
        old_format(trace),
        'os.system':
        torch_file(more=Calls(os.system, f'touch {trace}')),
        'exec':
        torch_file(more=Calls(exec, code)),
        'eval':
        torch_file(more=Calls(eval, code)),
        'compile':
        torch_file(more=Calls(compile, code, 'x', 'exec')),
        '__import__':
        torch_file(more=Calls(builtins.__import__, 'os')),
        'subprocess':
        torch_file(more=Calls(subprocess.check_call, ['touch', trace])),
        'getattr chain':
        with_pickle(chain(trace)),
        'getattr chain in a checkpoint':
        chain_in_checkpoint(trace),
        'getattr chain, old format':
        chain(trace),
        'getattr of a history':
        torch_file(more=Calls(getattr, HistoryBuffer, '__init__')),
        'in meta':
        torch_file(meta=dict(META, cfg=call)),
        'in an optimizer':
        torch_file(optimizer=dict(state={0: call})),
        'in a list':
        torch_file(more=[[[call]]]),
        'as a key':
        with_pickle(b'\x80\x02}' + opener + b'K\x01s.'),
        'as a state':
        torch_file(more=Builds(dict, (), dict(a=call))),
        'an attribute of a tensor dict':
        with_pickle(b'\x80\x02ccollections\nOrderedDict\n)R}' +
                    text('_metadata') + opener + b'sb.'),
        'a stack of two values':
        with_pickle(b'\x80\x02' + opener + b'0}.'),
        'persistent id':
        persistent(),
        'instance':
        with_pickle(f'(ios\nsystem\nVtouch {trace}\n.'.encode()),
        'object':
        with_pickle(f'(cos\nsystem\nVtouch {trace}\no.'.encode()),
        'extension':
        with_pickle(b'\x80\x02\x82\x01.'),
        'protocol 5':
        with_pickle(pickle.dumps(call, 5)),
        'array of objects':
        torch_file(more=np.array([call], dtype=object)),
        'array of texts':
        torch_file(more=np.array(['a'])),
        'dtype of pointers':
        torch_file(
            more=Builds(np.dtype, ('f8', False, False), (3, '<', None, None,
                                                         None, -1, -1, 63))),
        'dtype of records':
        torch_file(more=Calls(np.dtype, [('a', object)])),
        'array of another size':
        torch_file(more=Builds(
            np.zeros(1).__reduce__()[0], (np.ndarray,
                                          (0, ), b'b'), (1, (1 << 40, ),
                                                         np.dtype('f8'), False,
                                                         b'1234'))),
        'history with functions':
        torch_file(more=history(statistics_methods=dict(mean=OrderedDict))),
        'history of text':
        torch_file(more=history(_log_history='x')),
        'tar':
        tar(trace),
        'TorchScript':
        script(),
        'zip in a zip':
        archive([('a/data.pkl', torch_file(more=call)), ('a/version', b'3')]),
        'names that leave the folder':
        two_folders(),
        'compressed bomb':
        bomb(),
        'part twice':
        repeated(),
        'overlapping parts':
        overlapping(),
        'expanded tensor':
        expanded(),
        'huge storage':
        changed_pickle(b'K\x0ct', HUGE + b't'),
        'huge tensor':
        changed_pickle(b'K\x04K\x03\x86', HUGE * 2 + b'\x86'),
        'huge stride':
        changed_pickle(b'K\x03K\x01\x86', HUGE * 2 + b'\x86'),
        'negative stride':
        changed_pickle(b'K\x03K\x01\x86', b'J\xff\xff\xff\xffK\x01\x86'),
        'negative offset':
        changed_pickle(b'QK\x00', b'QJ\xff\xff\xff\xff'),
        'huge storage, old format':
        torch_file(False).replace(b'K\x0cN', HUGE + b'N'),
        'deep nesting':
        with_pickle(b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.'),
        'npz':
        npz(a=np.ones(3)),
        'npz of objects':
        npz(a=np.array([call], dtype=object)),
        'npy of objects':
        npy(np.array([call], dtype=object)),
        'pickle':
        pickle.dumps(dict(state_dict=call), 2),
        'pickle of text':
        pickle.dumps(dict(state_dict=call), 0),
        'ONNX':
        b'\x08\x07\x12\x07pytorch' + bytes(100),
        'YAML':
        yaml.dump(call).encode(),
        'JSON':
        b'{"state_dict": {"weight": [1, 2]}}',
        'Python':
        code.encode(),
        'endless':
        b'PK\x03\x04' + bytes(range(256)) * 100, }
