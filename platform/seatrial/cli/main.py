"""The `seatrial` command: a table of verbs, each in a file that is imported when it is used."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from seatrial.errors import SeatrialError
from seatrial.monitoring.proxy import direct_loopback

VERBS = {
    "up": "Start MLflow, Ray and the controller on this machine.",
    "status": "Show how each part and each service is, with the cause when something is wrong.",
    "down": "End the local stack and everything it started.",
    "env": "Print the shell lines that point plain ray and mlflow commands at the stack.",
    "data": "Build a data set.",
    "train": "Plan, submit and follow a training job.",
    "jobs": "Show, follow, stop and retry the jobs of the queue.",
    "deploy": "Deploy a service, or change the one that runs.",
    "promote": "Set an alias of a service to a version.",
    "rollback": "Point the champion back at the previous version.",
    "delete": "Take a service away: its endpoint, its engines, its configuration.",
    "trial": "Look at trials, open them, end them.",
    "audit": "List a service's decisions, and recompute one from its record.",
    "power": "Say how many units and days a trial takes to find a lift, however often one looks.",
    "validate": "Check recipes and service files without running anything.",
    "key": "Make an API key for a service.",
    "schema": "Print the JSON schema of a configuration file.",
}
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h


class Verbs(MutableMapping[str, Any]):
    """Name → command, made by importing `seatrial.cli.NAME` when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name not in VERBS:
            raise KeyError(name)
        module = importlib.import_module(f"seatrial.cli.{name}")
        if hasattr(module, "app"):  # a verb with verbs of its own
            return typer.main.get_command(module.app)
        holder = typer.Typer(add_completion=False, rich_markup_mode=None)
        holder.command(name, help=module.command.__doc__)(module.command)
        return typer.main.get_command(holder)

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)

    def __contains__(self, name: object) -> bool:
        return name in VERBS

    def __setitem__(self, name: str, command: Any) -> None:
        raise TypeError("verbs are files of seatrial.cli")

    def __delitem__(self, name: str) -> None:
        raise TypeError("verbs are files of seatrial.cli")


class LazyGroup(typer.core.TyperGroup):
    """A group whose help does not import its commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Verbs()

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of their use."""
        return list(VERBS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The verbs with their first sentences."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


EXIT_CODES = (
    "Exit codes: 0 done; 1 failed; 2 bad input; 3 a job's gate refused its version; 70 a bug of Seatrial; "
    "75 a part did not answer, try again; 130 Ctrl-C; 143 a job was terminated."
)

app = typer.Typer(
    cls=LazyGroup,
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Fine-tune language models on Ray, register them in MLflow, serve them, promote the one that wins."""
    if version:
        from importlib.metadata import version as installed

        print(installed("seatrial"))
    elif context.invoked_subcommand is None:
        print(context.get_help())


def run() -> None:
    """Run the command line of this process and end it with the right exit code.

    Every error on purpose is one line on standard error for each problem; any other one is a line that names
    the file with its traceback.
    """
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    os.environ.update(direct_loopback(os.environ))
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="seatrial", standalone_mode=False)
    except SeatrialError as error:
        _complain(str(error))
        return error.exit_code
    except typer.TyperException as error:
        said = error.format_message().replace("\n", " ").replace("Value error, ", "").rstrip(".")
        _complain(f"{said}{'' if said.endswith('?') else '.'} See `{_help_of(error)}`.")
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):  # an ordinary Ctrl-C comes as exit code 130 below
        _complain("interrupted")
        return 130
    except Exception as error:
        from seatrial.submission.screening import redact

        what = redact(f"unexpected {type(error).__name__}: {_first_line(error)}")
        kept = _kept(redact(f"seatrial {' '.join(arguments)}\n\n{traceback.format_exc()}"))
        _complain(f"{what}: a bug; traceback: {kept}")
        return UNEXPECTED
    return code if isinstance(code, int) else 0


def _help_of(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'seatrial'} --help"


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _kept(text: str) -> Path:
    """Write a traceback beside the stack's logs if there are some."""
    name = f"seatrial-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (
        Path(os.environ.get("SEATRIAL_HOME") or ".seatrial") / "logs",
        Path(tempfile.gettempdir()),
    ):
        if folder.is_dir():
            try:
                (folder / name).write_text(text, encoding="utf-8")
            except OSError:
                continue
            return folder / name
    return Path("nowhere: no folder could be written")


if __name__ == "__main__":
    run()
