"""`denoised recipe`: what made a picture or clip, read from the file itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from denoised.errors import CommandError


def recipe(
    file: Annotated[Path, typer.Argument(help="A picture or clip made by denoised.")],
) -> None:
    """Print the recipe in a picture or clip; its `input` can be submitted again as it is."""
    import json

    from workers.outputs import read_recipe

    try:
        found = read_recipe(file)
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise CommandError(str(error)) from None
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
