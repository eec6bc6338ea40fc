"""The `denoised` command: names, help and exit codes. Each command lives in `denoised.commands`.

Only the command line library is loaded here; whatever a command needs it imports when it runs, so
that help and quick commands answer at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from denoised.commands import demo, jobs, keys, models, processes, recipe, run, serve
from denoised.errors import ClientError, CommandError

app = typer.Typer(
    name="denoised",
    help="The denoise daemon: pictures from diffusion models through a durable queue.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from denoised import __version__

        print(f"denoised {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="DENOISED_API_KEY",
            help="Key to send to a server. Others on this machine can read a command line: prefer "
            "the variable.",
            show_default=False,
        ),
    ] = None,
) -> None:
    if api_key:
        # Where clients look for it, those of a command's child processes too.
        os.environ["DENOISED_API_KEY"] = api_key


app.command("serve")(serve.serve)
app.command("run")(run.run)
app.command("demo")(demo.demo)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.command("recipe")(recipe.recipe)
app.command("api")(processes.api)
app.command("worker")(processes.worker)
app.command("keeper")(processes.keeper)


def main() -> None:
    """Entry point: run the command, turn expected failures into one line and an exit code."""
    try:
        app()
    except CommandError as error:
        _fail(str(error), error.exit_code)
    except ClientError as error:
        _fail(str(error), 1)


def _fail(message: str, exit_code: int) -> None:
    print(f"denoised: {message}", file=sys.stderr)
    sys.exit(exit_code)
