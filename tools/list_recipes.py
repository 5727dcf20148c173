# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""List the recipes that come with the package.

What a recipe is for is the first sentence of its config file. Its cost is
given by the images that training looks at, in millions.
"""
import argparse
import re

from rich.console import Console
from rich.table import Table

from us3l_mm.apis.command_line import errors_as_sentences
from us3l_mm.apis.recipes import recipes, shipped

# Images of the training sets.
IMAGES = {
    'CIFAR-10': 50_000,
    'CIFAR-100': 50_000,
    'STL-10': 100_000,
    'ImageNet-100': 126_689,
    'ImageNet-1k': 1_281_167, }


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        'words', nargs='*', help='show only the recipes with all of these '
        'words, such as slimclr imagenet')
    parser.add_argument('--debug', action='store_true',
                        help='show the whole traceback of an error')
    return parser.parse_args(argv)


def purpose(path):
    """The first sentence of the comment at the top of a config file."""
    lines = path.read_text().splitlines()[1:]  # without the copyright
    comment = []
    for line in lines:
        if not line.startswith('#'):
            break
        comment.append(line.lstrip('# '))
    return re.split(r'(?<=\.) ', ' '.join(comment))[0]


def millions(recipe):
    """The images that training looks at, in millions."""
    if recipe.data not in IMAGES or recipe.epochs is None:
        return ''
    return f'{IMAGES[recipe.data] * recipe.epochs / 1e6:,.0f}'


def matches(recipe, words):
    text = f'{recipe.name} {recipe.collection} {recipe.data}'.lower()
    return all(word.lower() in text for word in words)


def main(argv=None):
    args = parse_args(argv)
    with errors_as_sentences('list_recipes', args.debug):
        found = [r for r in recipes() if matches(r, args.words)]
        if not found:
            raise ValueError(f'No recipe has the words {args.words}. Without '
                             'words, all are listed.')
    table = Table(title=f'Recipes in {shipped("configs")}',
                  title_justify='left')
    for name in ('recipe', 'for', 'data', 'epochs', 'batch', 'million images'):
        table.add_column(
            name, justify='right' if name in ('epochs', 'batch',
                                              'million images') else 'left',
            overflow='fold')
    for recipe in found:
        table.add_row(recipe.path.stem, purpose(recipe.path), recipe.data,
                      str(recipe.epochs or ''), str(recipe.batch_size or ''),
                      millions(recipe))
    console = Console()
    console.print(table)
    console.print(f'Start one by: us3l train {found[0].path}', soft_wrap=True)


if __name__ == '__main__':
    main()
