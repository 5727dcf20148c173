# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Packaging of us3l_mm: ranges here, exact versions in requirements/."""
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# The OpenMMLab stack is an extra, not a requirement. The original line
# (mmengine, mmcv, mmpretrain) and the maintained one (onedl-*) install the
# same import packages under different distribution names: pip would put the
# one beside the other, file over file, for a user who has the original line.
# us3l_mm/stack.py says what to install where the stack is missing or mixed.
INSTALL_REQUIRES = [
    'matplotlib>=3.6',
    'numpy>=1.26',
    'pillow>=9',
    'pyyaml>=6',
    'rich>=13',
    'scikit-learn>=1.2',
    'scipy>=1.10',
    'torch>=2.6',
    'torchvision>=0.21', ]
EXTRAS_REQUIRE = {
    'mm': [
        'onedl-mmcv>=2.3,<2.4',
        'onedl-mmengine>=0.10.12,<0.11',
        'onedl-mmpretrain>=1.3,<1.4', ],
    'detection': ['onedl-mmdetection>=3.5,<3.6', 'pycocotools>=2.0.6'],
    'export': ['onnx>=1.16', 'onnxruntime>=1.18', 'timm>=1.0'],
    'tensorboard': ['tensorboard>=2.14'],
    'benchmark': ['lightly>=1.5'],
    'docs': ['furo>=2024.8', 'myst-parser>=4', 'sphinx>=8.1'],
    'lint': ['mypy', 'ruff', 'yapf'], }
EXTRAS_REQUIRE['tests'] = [
    'fvcore',
    'pytest>=7.4',
    'pytest-xdist>=3.5',
    *EXTRAS_REQUIRE['lint'],
    *EXTRAS_REQUIRE['docs'],
    *EXTRAS_REQUIRE['detection'],
    *EXTRAS_REQUIRE['export'],
    *EXTRAS_REQUIRE['tensorboard'], ]
EXTRAS_REQUIRE['dev'] = ['pre-commit', *EXTRAS_REQUIRE['tests']]


def read_version() -> str:
    """``__version__`` of the package, without importing its dependencies."""
    scope = {}
    exec((ROOT / 'us3l_mm' / 'version.py').read_text(), scope)
    return scope['__version__']


# The address of the public repository, for the links of the long description.
REPOSITORY = ''


def read_description() -> str:
    """The README, whose relative links are absolute, or plain text."""
    text = (ROOT / 'README.md').read_text()
    link = re.compile(r'(!?)\[([^]]*)\]\((?!https?:)([^)]*)\)')
    if REPOSITORY:
        return link.sub(rf'\1[\2]({REPOSITORY}/blob/main/\3)', text)
    return link.sub(lambda found: '' if found[1] else found[2], text)


class BuildWithConfigs(build_py):
    """Puts configs and tools into a wheel, where OpenMMLab looks for them.

    An editable installation needs no copy: it has the clone.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder in ('configs', 'tools'):
            shutil.copytree(
                ROOT / folder, Path(self.build_lib, 'us3l_mm', '.mim', folder),
                ignore=shutil.ignore_patterns('__pycache__',
                                              'setup'), dirs_exist_ok=True)
        shutil.copy(ROOT / 'model-index.yml',
                    Path(self.build_lib, 'us3l_mm', '.mim'))


setup(
    name='us3l_mm',
    version=read_version(),
    description='Pre-train a universally slimmable network once, '
    'self-supervised; measure and cut out any width',
    long_description=read_description(),
    long_description_content_type='text/markdown',
    author='The us3l_mm authors',
    url=REPOSITORY,
    project_urls={
        'US3L': 'https://arxiv.org/abs/2303.06870',
        'SlimCLR': 'https://arxiv.org/abs/2209.15525',
        'Dense + gated SSL': 'https://arxiv.org/abs/2301.09164',
        'MMPretrain': 'https://github.com/open-mmlab/mmpretrain', },
    keywords='self-supervised learning, slimmable networks, model compression,'
    ' MMPretrain, MMDetection',
    license='Apache-2.0',
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=['us3l_mm', 'us3l_mm.*']),
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points=dict(console_scripts=['us3l = us3l_mm.cli:main']),
    cmdclass={'build_py': BuildWithConfigs},
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Environment :: Console',
        'Environment :: GPU :: NVIDIA CUDA',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence', ],
    zip_safe=False,
)
