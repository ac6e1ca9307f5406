"""The command `rowmill`: finds the subcommand, and turns a user's mistake into one line and an exit code."""

import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from connectors.errors import JobError, RowmillError, did_you_mean, from_system

COMMANDS = {
    "run": "pipelines.commands.run",
    "retry": "pipelines.commands.run",
    "plan": "pipelines.commands.plan",
    "validate": "pipelines.commands.validate",
    "schema": "pipelines.commands.validate",
    "init": "pipelines.commands.init",
    "status": "pipelines.commands.look",
    "errors": "pipelines.commands.look",
    "usage": "pipelines.commands.look",
    "show": "pipelines.commands.show",
    "rebuild": "pipelines.commands.rebuild",
    "report": "pipelines.commands.report",
    "schedule": "pipelines.commands.schedule",
    "serve": "pipelines.commands.serve",
    "models": "pipelines.commands.models",
    "files": "pipelines.commands.files",
    "batches": "pipelines.commands.batches",
    "ledger": "pipelines.commands.ledger",
}
"""Name -> the module that holds it; imported only when it is asked for."""


class Rowmill(click.Group):
    """A group whose commands are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(importlib.import_module(module), f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise JobError(f"rowmill {args[0]}: no such command; {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Rowmill, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rowmill")
def rowmill() -> None:
    """Job files in, typed tables out: rate-limited, budgeted, resumable batches against any OpenAI-style API.

    \b
    Example:
      rowmill init my-jobs && rowmill run my-jobs/jobs/quickstart.yaml
    """


REPORTING = ("rowmill run", "rowmill retry")
"""The commands whose `--json` tells how a run ended, also where none was begun."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _interrupted)
    sys.exit(exit_code_of(arguments))


def _interrupted(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does, wherever it is."""
    raise KeyboardInterrupt


def exit_code_of(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    try:
        given = None if arguments is None else list(arguments)
        code = rowmill.main(args=given, prog_name="rowmill", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.UsageError as exc:
        where = "rowmill" if exc.ctx is None else exc.ctx.command_path
        mistake = f"{where}: {exc.format_message().rstrip('.')}; see {where} --help"
        if where in REPORTING and "--json" in (sys.argv[1:] if arguments is None else arguments):
            _report_nothing(mistake)
        click.echo(mistake, err=True)
        return 2
    except click.ClickException as exc:
        exc.show()
        return 2
    except RowmillError as exc:
        click.echo(str(exc), err=True)
        return exc.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as exc:
        told = from_system(exc)
        click.echo(str(told), err=True)
        return told.exit_code
    return code if isinstance(code, int) else 0


def _report_nothing(stopped: str) -> None:
    """The object of `--json` for a command line that names no job which could be run."""
    import orjson

    from pipelines.summary import nothing_done

    click.echo(orjson.dumps(nothing_done(None, 2, stopped)))


if __name__ == "__main__":
    main()
