"""A plan as a person reads it before money is spent: rows, steps, cost, time, disk, and the first requests."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from pipelines.formatting import format_bytes, format_duration, format_money, hanging, wrapped
from pipelines.planning.answer_estimates import ENOUGH
from pipelines.planning.plan import Plan, StepPlan

EXAMPLE_LINES = 6


def format_plan(plan: Plan, path: str, width: int = 80) -> str:
    """The plan in at most so many columns."""
    lines = [
        f"{plan.job}: {plan.rows:,} rows",
        f"  {plan.new:,} new · {plan.changed:,} changed · {plan.done:,} done · {plan.failed_before:,} failed before",
        "",
    ]
    if plan.failed_before:
        lines.insert(2, f"  those that failed before are asked again only by: rowmill retry {path}")
    if plan.refused is not None:
        lines[-1:] = ["", *hanging(f"refused as the sink stands: {plan.refused}", 2, width), ""]
    if not plan.new + plan.changed:
        return "\n".join([*lines[:-1], "  nothing to send"])
    lines += [f"  {line}" for line in _table(plan.steps)]
    lines += [f"  {line}" for step in plan.steps for line in _remarks(step, len(plan.steps) > 1)]
    lines.append("")
    told = [("cost", _cost(plan)), ("time", _time(plan)), ("disk", f"about {format_bytes(plan.disk_bytes)}")]
    told.append(("counted", _counted(plan)))
    for name, words in told:
        told_lines = [line for sentence in words.split("\n") for line in wrapped(sentence, width - 11)]
        lines += [f"  {name if not place else '':<9}{line}" for place, line in enumerate(told_lines)]
    for number, example in enumerate(plan.examples, 1):
        lines += ["", f"  request {number}, step {example['step']}"]
        lines += [f"    {line}" for line in _request(example["request"], width - 4)]
    if plan.refused is not None:
        return "\n".join([*lines, "", f"  next: rowmill run {path} --schema-change cast"])
    lines += ["", f"  next: rowmill run {path}"]
    if plan.requests > 200:
        lines.append(f"  or try a few rows first: rowmill run {path} --limit 20 --sink out/try")
    return "\n".join(lines)


def _table(steps: Sequence[StepPlan]) -> Iterator[str]:
    rows = [("step", "model", "requests", "tokens in", "tokens out")]
    for step in steps:
        given, made = f"{step.input_tokens:,}", f"{step.output_tokens:,}"
        rows.append(
            (
                step.step,
                f"{step.model} ({step.provider})",
                f"{step.requests:,}",
                given if step.exact_tokens or not step.input_tokens else f"~{given}",
                f"~{made}" if step.output_tokens else "0",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join(cells).rstrip()


def _remarks(step: StepPlan, several: bool) -> Iterator[str]:
    """What the table's figures leave out."""
    name = f"{step.step}: " if several else ""
    if step.in_ledger:
        yield f"{name}{step.in_ledger:,} answers are in the ledger already and cost nothing"
    if step.skipped or step.perhaps:
        known = f"{step.skipped:,} rows are left out by `when`" if step.skipped else ""
        open_ = f"only the run will tell `when` for {step.perhaps:,} rows" if step.perhaps else ""
        yield f"{name}{'; '.join(filter(None, (known, open_)))}"
    if step.unaskable:
        yield f"{name}{step.unaskable:,} rows hold nothing that can be asked and will fail as input"
    if step.fetched:
        yield f"{name}{step.fetched:,} rows name a URL; its content counts as an average, nothing is fetched now"
    for amount, unit in (
        (step.images, "images to make"),
        (step.characters, "characters to speak"),
        (round(step.audio_seconds), "seconds of sound to hear"),
    ):
        if amount:
            yield f"{name}{amount:,} {unit}"


def _cost(plan: Plan) -> str:
    if not plan.requests and not plan.high_usd:
        return "nothing: every answer is in the ledger"
    if all(step.free for step in plan.steps):
        return "nothing: the embedded provider runs on this machine"
    unknown = sorted({step.model for step in plan.steps if step.expected_usd is None})
    if unknown:
        return f"not known: there is no price for {', '.join(unknown)}; add it to `prices:` in rowmill.yaml"
    words = f"{format_money(plan.low_usd)} – {format_money(plan.expected_usd)} expected – "
    if plan.high_usd is None:
        words += "no upper bound: add params: {max_tokens: N}"
    else:
        words += f"{format_money(plan.high_usd)} at most"
    expected = plan.expected_usd
    if plan.batch_usd is not None and plan.delivery == "batch":
        words = f"about {format_money(plan.batch_usd)} by the Batch API, as the job is delivered\nonline: {words}"
        expected = plan.batch_usd
    elif plan.batch_usd is not None:
        words += f"\nabout {format_money(plan.batch_usd)} by the Batch API (--delivery batch)"
    if plan.budget_usd is not None:
        words += f"\nthe budget is {format_money(plan.budget_usd)}"
        if expected is not None and expected > plan.budget_usd:
            words += ", LESS than expected: the run would stop on the way"
    return words


def _time(plan: Plan) -> str:
    if not plan.requests:
        return "moments: nothing has to be asked"
    if plan.seconds is None:
        return "not known: no limit is set, and no answer has been seen yet"
    words = f"about {format_duration(plan.seconds)}, bound by {plan.bound_by}"
    if any(step.latency_ms is None and step.requests for step in plan.steps):
        words += "\nhow long answers take is not known yet: longer where they are slow"
    return words


def _counted(plan: Plan) -> str:
    asked = plan.new + plan.changed
    on = (
        f"on all {asked:,} rows"
        if plan.whole
        else f"on {plan.reckoned_rows:,} of {asked:,} rows, spread over all, and scaled up"
    )
    exact = sorted({step.model for step in plan.steps if step.exact_tokens})
    guessed = sorted({step.model for step in plan.steps if not step.exact_tokens})
    how = (
        [f"tokens of {', '.join(exact)} by {'their own tokenizers' if len(exact) > 1 else 'its own tokenizer'}"]
        if exact
        else []
    )
    how += [f"tokens of {', '.join(guessed)} estimated"] if guessed else []
    seen = [step for step in plan.steps if step.answers_seen]
    if seen:
        how.append(f"answers as long as the {sum(step.answers_seen for step in seen):,} before")
    elif any(step.output_tokens for step in plan.steps):
        how.append("answers estimated, there are none yet")
    words = f"{on}; {'; '.join(how)}"
    for step in (step for step in plan.steps if step.guessed_answer and step.requests):
        name = f"answers of {step.step}" if len(plan.steps) > 1 else "an answer"
        words += f"\n{name}: a mere guess of {step.guessed_answer:,} tokens each, until {ENOUGH} are known"
    return words


def _request(body: Mapping[str, Any], width: int) -> list[str]:
    """A request shortened to a few lines: its turns or texts first, what is the same for all rows behind them."""
    rest = dict(body)
    lines: list[str] = []
    for name in ("messages", "input", "prompt"):
        told = rest.get(name)
        if isinstance(told, str):
            lines.append(_cut(f"{name}: {_one_line(told)}", width))
        elif isinstance(told, list) and all(isinstance(turn, Mapping) for turn in told):
            for turn in told:
                content = turn.get("content")
                shown = content if isinstance(content, str) else orjson.dumps(content or dict(turn)).decode()
                lines.append(_cut(f"{turn.get('role', name)}: {_one_line(shown)}", width))
        else:
            continue
        del rest[name]
    lines.append(_cut(orjson.dumps(rest).decode(), 2 * width))
    if len(lines) > EXAMPLE_LINES:
        left = len(lines) - EXAMPLE_LINES
        lines = [*lines[: EXAMPLE_LINES - 1], f"… {left:,} turns more", lines[-1]]
    last = lines.pop()
    return [*lines, last[:width], *([last[width:]] if len(last) > width else [])]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
