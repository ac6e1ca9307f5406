"""The screen of `rowmill plan`: rows, steps, cost, time, disk space, and the first requests."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from pipelines.formatting import (
    DataTable,
    escape_control_characters,
    fact_list,
    format_bytes,
    format_count,
    format_duration,
    format_money,
    money_decimals,
    single_line,
)
from pipelines.planning.answer_estimates import MIN_ANSWERS
from pipelines.planning.plan import Plan, SingleRequests, StepPlan

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

EXAMPLE_TURNS = 5
"""Messages of a request that are shown."""
_MEDIA_NAME = re.compile("rowmill-media:([0-9a-f]{8})[0-9a-f]{56}")
"""The name that a request's body has in place of a file's content."""
MAX_EXAMPLE_CHARACTERS = 2000
"""Of one message or parameter, however wide the output is."""


def format_plan(plan: Plan, path: str, trial_sink: str) -> "Group":
    """Draw the plan of the job file at `path`; `trial_sink`: where `--sink` may write a few rows."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    def indented(content: "RenderableType", columns: int = 2) -> "RenderableType":
        return Padding(content, (0, 0, 0, columns), expand=False)

    parts: list[RenderableType] = [
        Text(f"{plan.job}: {format_count(plan.rows, 'row')}", style="bold"),
        f"  {plan.new:,} new · {plan.changed:,} changed · {plan.done:,} done · {plan.failed_before:,} failed before",
    ]
    if plan.rescued:
        parts.append(f"  {plan.rescued:,} that failed before have a rung of `rescue` that may be new to them")
    if plan.failed_before:
        parts.append(f"  only `rowmill retry {path}` sends those that failed before again")
    for warning in plan.warnings:
        parts += ["", indented(f"warning: {escape_control_characters(warning)}")]
    if plan.refused is not None:
        parts += ["", indented(f"the run would be refused: {plan.refused}")]
    if not plan.new + plan.changed + plan.rescued:
        return Group(*parts, "  nothing to send")
    steps = [
        {
            "step": step.step,
            "model": f"{step.model} ({step.provider})",
            "requests": step.requests,
            "tokens in": _estimate(step.input_tokens, step.exact_tokens),
            "tokens out": _estimate(step.output_tokens, False),
        }
        for step in plan.steps
    ]
    if steps:
        parts += ["", indented(DataTable(steps, wrapped="model"))]
    if notes := [(step.step, note) for step in plan.steps for note in _notes(step)]:
        parts += ["", indented(fact_list(notes))]
    facts = {
        "cost": _cost(plan),
        "time": _time(plan),
        "disk": f"about {format_bytes(plan.disk_bytes)}",
        "basis": _basis(plan),
    }
    parts += ["", indented(fact_list(facts.items()))]
    for number, example in enumerate(plan.examples, 1):
        title = Text(f"request {number}, step {example['step']}", style="bold")
        parts += ["", indented(title), indented(fact_list(_request_lines(example["request"]), is_cut=True), 4)]
    if plan.refused is not None:
        change = "cast" if "--schema-change cast" in plan.refused else "backfill"
        commands = [("next", f"rowmill run {path} --schema-change {change}")]
    else:
        commands = [("next", f"rowmill run {path}")]
        if plan.requests > 200:
            commands.append(("or first", f"rowmill run {path} --limit 20 --sink {shlex.quote(trial_sink)}"))
    return Group(*parts, "", indented(fact_list(commands)))


def _estimate(tokens: int, is_exact: bool) -> str:
    return f"{tokens:,}" if is_exact or not tokens else f"~{tokens:,}"


def _notes(step: StepPlan) -> Iterator[str]:
    """What the figures of the table do not show."""
    if step.unpacked is not None and step.requests:
        yield f"packed: {_sizes(step)}; without `pack`: {_sizes(step, step.unpacked)}"
        if step.high_usd:
            yield "its highest cost counts every pack as sent again in halves, down to single rows"
    if step.model_limit and step.high_usd:
        yield f"without max_tokens, the highest cost counts answers of {step.model_limit:,} tokens"
    if step.in_ledger:
        yield f"{step.in_ledger:,} answers are in the ledger already and cost nothing"
    if step.rescued:
        yield f"{step.rescued:,} rows that failed before are requested again by a rung"
    if step.skipped:
        yield f"{step.skipped:,} rows are skipped by `when`"
    if step.perhaps:
        yield f"`when` depends on answers that are not there yet for {step.perhaps:,} rows"
    if step.unaskable:
        yield f"{step.unaskable:,} rows make no valid request and will fail as `input`"
    if step.fetched:
        yield f"{step.fetched:,} rows name a URL; plan does not fetch it and assumes average content"
    if step.late_constant_tokens:
        yield (
            f"{step.late_constant_tokens:,} tokens of constant text follow row text in each request, so the provider "
            "cannot cache them; put constant text first"
        )
    for amount, unit in (
        (step.images, "images to make"),
        (step.characters, "characters to speak"),
        (round(step.audio_seconds), "seconds of audio to transcribe"),
    ):
        if amount:
            yield f"{amount:,} {unit}"


def _sizes(step: StepPlan, unpacked: SingleRequests | None = None) -> str:
    """Requests, tokens and cost of a step, or of its rows one by one."""
    sizes = unpacked or step
    text = (
        f"{sizes.requests:,} requests, {_estimate(sizes.input_tokens, step.exact_tokens)} tokens in, "
        f"{_estimate(sizes.output_tokens, False)} out"
    )
    if step.free or sizes.expected_usd is None:
        return text
    return f"{text}, {format_money(sizes.expected_usd, money_decimals([sizes.expected_usd]))}"


def _cost(plan: Plan) -> str:
    if not plan.steps:
        return "nothing: no step sends a request"
    if not plan.requests and not plan.high_usd:
        return "nothing: every answer is in the ledger"
    if all(step.free for step in plan.steps):
        return "nothing: the embedded provider runs on this machine"
    unknown = sorted({step.model for step in plan.steps if step.expected_usd is None})
    if unknown:
        return f"not known: there is no price for {', '.join(unknown)}; add it to `prices:` in rowmill.yaml"
    decimals = money_decimals([plan.low_usd, plan.expected_usd, plan.high_usd, plan.batch_usd, plan.budget_usd])

    def money(usd: float | None) -> str:
        return format_money(usd, decimals)

    high = f"no upper bound: {plan.unbounded}" if plan.high_usd is None else f"{money(plan.high_usd)} at most"
    online = f"{money(plan.expected_usd)} expected, {money(plan.low_usd)} at least, {high}"
    expected, lines = plan.expected_usd, [online]
    if plan.batch_usd is not None and plan.delivery == "batch":
        lines = [f"about {money(plan.batch_usd)} through the Batch API, as the job sets", f"online: {online}"]
        expected = plan.batch_usd
    elif plan.batch_usd is not None:
        lines.append(f"about {money(plan.batch_usd)} through the Batch API (--delivery batch)")
    if plan.rescue_usd is None:
        lines.append("the rungs of `rescue` have no upper bound: add params: {max_tokens: N} and prices")
    elif plan.rescue_usd:
        lines.append(f"{money(plan.rescue_usd)} more at most, if every row fails and takes all rungs of `rescue`")
    if plan.budget_usd is not None:
        is_short = expected is not None and expected > plan.budget_usd
        warning = ", LESS than expected: the run would stop before its end" if is_short else ""
        lines.append(f"budget: {money(plan.budget_usd)}{warning}")
    return "\n".join(lines)


def _time(plan: Plan) -> str:
    if not plan.requests:
        return "a few seconds: no requests needed"
    if plan.seconds is None:
        return "not known: no limit is set, and no answer has been observed yet"
    line = f"about {format_duration(plan.seconds)}, bound by {plan.bound_by}"
    if any(step.latency_ms is None and step.requests for step in plan.steps):
        line += "\nlatency is not known yet: slow answers take longer"
    return line


def _basis(plan: Plan) -> str:
    """What the figures were computed from."""
    sent = plan.new + plan.changed + plan.rescued
    sample = f"{plan.reckoned_rows:,} of {sent:,} rows, spread over all, and scaled up"
    exact = sorted({step.model for step in plan.steps if step.exact_tokens})
    estimated = sorted({step.model for step in plan.steps if not step.exact_tokens})
    how = [f"all {format_count(sent, 'row')}" if plan.reckoned_rows >= sent else sample]
    how += [f"{step} makes about {format_count(count, 'row')} of them" for step, count in plan.children.items()]
    if exact:
        tokenizer = "their own tokenizers" if len(exact) > 1 else "its own tokenizer"
        how.append(f"tokens of {', '.join(exact)} by {tokenizer}")
    if estimated:
        how.append(f"tokens of {', '.join(estimated)} estimated")
    observed = sum(step.answers_seen for step in plan.steps)
    if observed:
        how.append(f"answers as long as {observed:,} earlier ones")
    elif any(step.output_tokens for step in plan.steps):
        how.append("answers estimated, none observed yet")
    lines = ["; ".join(how)]
    for step in plan.steps:
        if step.guessed_answer and step.requests:
            name = f"{step.step}: " if len(plan.steps) > 1 else ""
            lines.append(
                f"{name}default estimate of {step.guessed_answer:,} tokens per answer "
                f"(fewer than {MIN_ANSWERS} observed)"
            )
    return "\n".join(lines)


def _request_lines(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A request as (name, value): first its messages or texts, then the parameters, which are the same for all rows."""
    parameters = dict(body)
    for name in ("messages", "input", "prompt"):
        content = parameters.get(name)
        if isinstance(content, str):
            yield name, _shorten(content)
        elif isinstance(content, list) and all(isinstance(turn, Mapping) for turn in content):
            yield from _turns(name, content)
        else:
            continue
        del parameters[name]
    for name, value in parameters.items():
        yield name, _shorten(value if isinstance(value, str) else orjson.dumps(value).decode())


def _turns(name: str, turns: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    messages = list(turns)
    for turn in messages[:EXAMPLE_TURNS]:
        content = turn.get("content")
        text = content if isinstance(content, str) else orjson.dumps(content or dict(turn)).decode()
        yield str(turn.get("role", name)), _shorten(text)
    if len(messages) > EXAMPLE_TURNS:
        yield "…", f"{len(messages) - EXAMPLE_TURNS:,} more messages"


def _shorten(text: str) -> str:
    text = _MEDIA_NAME.sub(r"(a file with the SHA-256 \1…)", text)
    return single_line(text[: 2 * MAX_EXAMPLE_CHARACTERS])[:MAX_EXAMPLE_CHARACTERS]
