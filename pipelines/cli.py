"""The command `rowmill`: finds the subcommand, and turns a user's mistake into one line and an exit code."""

import contextlib
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from connectors.errors import INTERRUPTED_QUERY, JobError, RowmillError, did_you_mean, from_duckdb_error, from_os_error
from pipelines.monitoring.json_log import DEFECT_MESSAGE, print_defect, print_problem, wants_json_log
from pipelines.runtime.child_process import end_with_starter
from pipelines.runtime.event_loop import look_rarely

COMMANDS = {
    "run": "pipelines.commands.run",
    "retry": "pipelines.commands.run",
    "plan": "pipelines.commands.plan",
    "validate": "pipelines.commands.validate",
    "schema": "pipelines.commands.validate",
    "init": "pipelines.commands.init",
    "status": "pipelines.commands.status",
    "errors": "pipelines.commands.status",
    "usage": "pipelines.commands.status",
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
            raise JobError(f"rowmill {args[0]}", "no such command", f"{did_you_mean(args[0], COMMANDS)}")
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


M_ARENA_MAX = -8
"""The number of glibc's mallopt for how many arenas there may be."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    look_rarely()
    _spare_memory()
    signal.signal(signal.SIGTERM, _interrupted)
    sys.unraisablehook = _not_raised
    end_with_starter()
    sys.exit(exit_code_of(arguments))


def _spare_memory() -> None:
    """What one thread or library frees is for all of them: a run's peak is a fifth less."""
    # Arrow's own pool would keep it. Read when pyarrow is imported.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if sys.platform == "linux":
        # So would each thread's arena. musl has neither arenas nor this function.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does, wherever it is."""
    raise KeyboardInterrupt


def _not_raised(told: "sys.UnraisableHookArgs") -> None:
    """A Ctrl-C that came where nothing can be raised, such as in a callback from C, leaves at once: a kill is safe."""
    if isinstance(told.exc_value, KeyboardInterrupt):
        os._exit(130)
    sys.__unraisablehook__(told)


def exit_code_of(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    as_lines = wants_json_log(given)
    try:
        code = rowmill.main(args=given, prog_name="rowmill", standalone_mode=False)
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.UsageError as exc:
        where = "rowmill" if exc.ctx is None else exc.ctx.command_path
        mistake = f"{where}: {exc.format_message().rstrip('.')}; see {where} --help"
        if where in REPORTING and "--json" in given:
            _report_nothing(mistake, 2)
        print_problem(mistake, as_lines)
        return 2
    except click.ClickException as exc:
        exc.show()
        return 2
    except RowmillError as exc:
        print_problem(str(exc), as_lines)
        return exc.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as exc:
        told = from_os_error(exc)
        print_problem(str(told), as_lines)
        return told.exit_code
    except Exception as exc:  # noqa: BLE001 - it is told whole
        if str(exc) == INTERRUPTED_QUERY:
            return 130
        if (broken := from_duckdb_error(exc)) is not None:
            print_problem(str(broken), as_lines)
            return broken.exit_code
        if " ".join(["rowmill", *given[:1]]) in REPORTING and "--json" in given:
            _report_nothing(DEFECT_MESSAGE, 3)
        # Python's own exit code would be 1: some rows failed.
        print_defect(exc, as_lines, None, None)
        return 3
    return code if isinstance(code, int) else 0


def _report_nothing(stopped: str, exit_code: int) -> None:
    """The object of `--json` where it is not known of which job."""
    import orjson

    from pipelines.runtime.run_report import RunReport

    click.echo(orjson.dumps(RunReport(None, exit_code=exit_code, stopped=stopped).to_json()))


if __name__ == "__main__":
    main()
