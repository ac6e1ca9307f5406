"""The command `rowmill`: finds the subcommand, and turns an error into one line and an exit code."""

import contextlib
import ctypes
import gc
import importlib
import os
import re
import sys
from collections.abc import Sequence

import click

from connectors.errors import JobError, RowmillError, did_you_mean, from_duckdb_error, from_os_error
from pipelines.monitoring.json_log import DEFECT_MESSAGE, print_defect, print_problem, wants_json_log
from pipelines.runtime.child_process import exit_with_parent
from pipelines.runtime.event_loop import reduce_gc
from pipelines.runtime.interrupts import interrupts_held, raise_interrupts, was_interrupted
from pipelines.runtime.standard_streams import lost_output, protect_standard_streams

COMMANDS = {
    "run": "pipelines.commands.jobs.run",
    "retry": "pipelines.commands.jobs.run",
    "plan": "pipelines.commands.jobs.plan",
    "validate": "pipelines.commands.jobs.validate",
    "schema": "pipelines.commands.jobs.validate",
    "init": "pipelines.commands.workspaces.init",
    "control": "pipelines.commands.jobs.control",
    "watch": "pipelines.commands.reports.watch",
    "status": "pipelines.commands.reports.status",
    "errors": "pipelines.commands.reports.status",
    "usage": "pipelines.commands.reports.status",
    "show": "pipelines.commands.reports.show",
    "rebuild": "pipelines.commands.jobs.rebuild",
    "report": "pipelines.commands.reports.report",
    "try": "pipelines.commands.jobs.experiment",
    "schedule": "pipelines.commands.jobs.schedule",
    "serve": "pipelines.commands.providers.serve",
    "models": "pipelines.commands.providers.models",
    "files": "pipelines.commands.providers.files",
    "batches": "pipelines.commands.providers.batches",
    "ledger": "pipelines.commands.workspaces.ledger",
}
"""Name -> its module, which is imported only if the command is used."""

SECTIONS = {"jobs": "Jobs", "reports": "Results and progress", "providers": "Providers", "workspaces": "Workspaces"}
"""Folder of `pipelines/commands` -> the heading of its commands in the help."""


class LazyGroup(click.Group):
    """A command group whose commands are imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        with interrupts_held():
            command: click.Command = getattr(importlib.import_module(module), f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for folder, title in SECTIONS.items():
            with formatter.section(title):
                names = [name for name, module in COMMANDS.items() if f".{folder}." in module]
                commands = [(name, self.get_command(ctx, name)) for name in names]
                limit = formatter.width - width - 6
                formatter.write_dl(
                    [(name.ljust(width), command.get_short_help_str(limit)) for name, command in commands if command]
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise JobError(f"rowmill {args[0]}", "no such command", did_you_mean(args[0], COMMANDS))
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rowmill")
def rowmill() -> None:
    """Job files in, typed tables out: rate-limited, budgeted, resumable batches against any OpenAI-style API.

    \b
    Example:
      rowmill init my-jobs && rowmill run my-jobs/jobs/quickstart.yaml
    """


REPORTING_COMMANDS = ("rowmill run", "rowmill retry")
"""Commands whose `--json` prints a run report, even if no run began."""
M_ARENA_MAX = -8
"""glibc's mallopt parameter for the maximum number of arenas."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    raise_interrupts()
    try:
        _run_and_exit(arguments)
    except KeyboardInterrupt:
        sys.exit(130)


def _run_and_exit(arguments: Sequence[str] | None) -> None:
    protect_standard_streams()
    reduce_gc()
    _reduce_memory()
    exit_with_parent()
    code = exit_code_of(arguments)
    if (problem := lost_output()) is not None:
        print_problem(problem, wants_json_log(sys.argv[1:] if arguments is None else arguments))
        code = code or 3
    # Else the interpreter walks all objects of all modules twice before it ends: 0.2 s of CPU time.
    gc.freeze()
    sys.exit(code)


def _reduce_memory() -> None:
    """Let all threads and libraries share freed memory: the peak of a run is a fifth lower."""
    # Arrow's own pool would keep what it freed. The variable is read when pyarrow is imported.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if sys.platform == "linux":
        # So would an arena per thread. musl has neither arenas nor this function.
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def exit_code_of(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = rowmill.main(args=words, prog_name="rowmill", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130
    except Exception as exc:  # noqa: BLE001 - printed, with its traceback if it is a defect
        return 130 if was_interrupted() else _print_error(exc, words)
    return code if isinstance(code, int) else 0


def _print_error(exc: Exception, words: Sequence[str]) -> int:
    """Print what has ended a command; return its exit code. `words`: of the command line."""
    as_json = wants_json_log(words)
    match exc:
        case click.exceptions.NoArgsIsHelpError():
            # A missing command is a mistake, but its help is what was asked for.
            click.echo(exc.format_message())
            return 2
        case click.UsageError():
            where = "rowmill" if exc.ctx is None else exc.ctx.command_path
            message = f"{where}: {_problem_and_remedy(exc, where)}"
            if where in REPORTING_COMMANDS and "--json" in words:
                _print_empty_report(message, 2)
            print_problem(message, as_json)
            return 2
        case click.ClickException():
            exc.show()
            return 2
        case RowmillError():
            error: RowmillError | None = exc
        case OSError():
            error = from_os_error(exc)
        case _:
            error = from_duckdb_error(exc)
    if error is not None:
        print_problem(str(error), as_json)
        return error.exit_code
    if " ".join(["rowmill", *words[:1]]) in REPORTING_COMMANDS and "--json" in words:
        _print_empty_report(DEFECT_MESSAGE, 3)
    # Not 1, Python's own exit code: it means that some rows failed.
    print_defect(exc, as_json, None, None)
    return 3


_SUGGESTION = re.compile(r"\.? \(?Did you mean (?:one of: )?(.*?)\??\)?$")
"""How click suggests names."""


def _problem_and_remedy(exc: click.UsageError, where: str) -> str:
    """Return WHAT and WHAT TO DO of a wrong command line."""
    found, *suggestions = _SUGGESTION.split(" ".join(exc.format_message().split()).rstrip("."))
    remedy = f"did you mean {suggestions[0].replace(chr(39), '')}?" if suggestions else None
    if isinstance(exc, click.MissingParameter) and exc.param is not None:
        from pipelines.config.job_suggestions import missing_argument_remedy

        remedy = missing_argument_remedy(exc.param.name)
    return f"{found.rstrip('.')}; {remedy or f'see {where} --help'}"


def _print_empty_report(stopped: str, exit_code: int) -> None:
    """Print the object of `--json` for an unknown job."""
    import orjson

    from pipelines.runtime.run_report import RunReport

    click.echo(orjson.dumps(RunReport(None, exit_code=exit_code, stopped=stopped).to_json()))


if __name__ == "__main__":
    main()
