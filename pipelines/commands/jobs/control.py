"""`rowmill control`: pause, resume, drain or change a run in progress."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from connectors.errors import JobError
from pipelines.commands.options import job_argument
from pipelines.commands.output import print_json_lines
from pipelines.control.protocol import COMMANDS, Command, ControlReply, ControlRequest


@click.command("control")
@job_argument(many=False)
@click.argument("command", metavar="[COMMAND]", type=click.Choice(COMMANDS), default="state")
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the state of the run as one JSON object.")
def control_command(job: str, command: Command, settings: tuple[str, ...], as_json: bool) -> None:
    """Steer a job while it runs.

    COMMAND is state (the default), pause, resume, drain or set. A pause sends nothing new; requests in flight are
    still answered. A drain ends the run after their answers. What is set applies until the run ends. JOB is a job file.

    These keys can be set: limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency, budget.usd.

    \b
    Examples:
      rowmill control jobs/quickstart.yaml pause
      rowmill control jobs/quickstart.yaml resume
      rowmill control jobs/quickstart.yaml set limits.concurrency=200 budget.usd=20
      rowmill control jobs/quickstart.yaml drain
    """
    from pipelines.config.loaded_job import read_job_file
    from pipelines.config.workspace import find_workspace
    from pipelines.control.client import send_request

    request = ControlRequest(command, _values(command, settings))
    path = Path(job)
    name = read_job_file(path).name
    if name is None:
        raise JobError(job, "the job has no name", "write e.g. name: label-tickets")
    reply = send_request(find_workspace(path).state, name, request)
    if reply.error is not None:
        raise JobError("", reply.error)
    if as_json:
        print_json_lines([reply.state or {}])
    else:
        _print_reply(command, request.values, reply)


def _values(command: Command, settings: tuple[str, ...]) -> Mapping[str, Any]:
    from pipelines.config.yaml_reader import parse_value

    if command != "set" and settings:
        raise JobError(f"control {command}", f"takes no value, found {settings[0]}", f"did you mean set {settings[0]}?")
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise JobError(f"set {setting}", "no value", f"write e.g. set {key}=50")
        values[key.strip()] = parse_value(text, f"set {key}")
    return values


def _print_reply(command: Command, values: Mapping[str, Any], reply: ControlReply) -> None:
    from pipelines.formatting import fact_list, format_count, print_out

    state: dict[str, Any] = dict(reply.state or {})
    in_flight = f"{state['in_flight']:,} in flight"
    match command:
        case "state":
            print_out(fact_list(_facts(state).items()))
        case "pause":
            click.echo(f"{state['job']}: paused; nothing new is sent, {in_flight}")
        case "resume":
            click.echo(f"{state['job']}: running")
        case "drain":
            requests = format_count(state["in_flight"], "request")
            click.echo(f"{state['job']}: draining; nothing new is sent, the run ends after {requests} in flight")
        case "set":
            shown = ", ".join(f"{key}={'null' if value is None else value}" for key, value in values.items())
            click.echo(f"{state['job']}: set {shown}, until this run ends")
    if reply.notice is not None:
        click.echo(reply.notice, err=True)


def _facts(state: Mapping[str, Any]) -> dict[str, str]:
    from pipelines.formatting import format_money, format_percent

    rows, done, cost, budget = state["rows"], state["rows_done"], state["cost_usd"], state["budget"]
    limits = ", ".join(f"{name} {value:,}" for name, value in state["limits"].items() if value is not None)
    errors = ", ".join(f"{name} {count:,}" for name, count in state["errors"].items())
    facts = {
        "job": state["job"],
        "rows": f"{done:,} of {rows:,}" + (f" ({format_percent(done, rows)})" if rows else ""),
        "rate": f"{state['requests_per_second']:,.1f} requests/s",
        "in flight": f"{state['in_flight']:,}",
        "cost": "not known" if cost is None else format_money(cost, 4),
        "budget": ""
        if budget is None
        else f"{format_money(budget['spent_usd'], 4)} of {format_money(budget['usd'], 4)}",
        "limits": limits,
        "errors": errors,
        "waits": state["held"] or "",
        "stopping": state.get("stopping") or "",
    }
    return {name: value for name, value in facts.items() if value}
