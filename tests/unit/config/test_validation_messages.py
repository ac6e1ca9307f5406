"""Error messages for invalid job files: the whole line, for one error at a time in a complete job."""

from collections.abc import Callable

import pytest

ONE_ERROR = [
    # Misspelt, misplaced and missing keys.
    ("concurrency: 200", "inflight: 200", "43: limits.inflight: no such key; did you mean concurrency?"),
    ("budget:", "Budget:", "45: Budget: no such key; did you mean budget?"),
    ("retry:", "retries:", "46: retries: no such key; did you mean retry?"),
    ("key: ticket_id", "kye: ticket_id", "6: source.kye: no such key; did you mean key?"),
    ("parquet: data/tickets/*.parquet", "parqet: x", "5: source.parqet: no such key; did you mean parquet?"),
    ("parquet: out/tickets", "folder: out", "33: sink: has no kind; write exactly one of {sinks}"),
    ("parquet: data/tickets/*.parquet", "", "4: source: has no kind; write exactly one of {sources}"),
    (
        "parquet: data/tickets/*.parquet",
        "csv: x.csv\n  parquet: y",
        "6: source.parquet: a second kind of source next to csv; keep one of them",
    ),
    ("model: gpt-4o-mini", "modle: gpt-4o-mini", "14: steps.label.modle: no such key; did you mean model?"),
    ("    model: gpt-4o-mini\n", "", "11: steps.label.model: missing; write e.g. model: gpt-4o-mini"),
    (
        "endpoint: chat",
        "endpoint: chatt",
        '12: steps.label.endpoint: found "chatt", which is not an endpoint; did you mean chat?',
    ),
    ("    endpoint: chat\n", "", "11: steps.label.endpoint: missing; write one of {endpoints}; {local}"),
    (
        "params: {",
        "temperature: 0\n    params: {",
        "18: steps.label.temperature: no such key; a parameter of the API goes below params, see also extra_body",
    ),
    (
        "model: text-embedding-3-small",
        "model: text-embedding-3-small\n    limits: {concurrency: 5}",
        "29: steps.vector.limits: no such key here; it belongs at the top of the file",
    ),
    (
        "provider: openai",
        "provider: openai\n    api_key: sk-very-secret",
        "14: steps.label.api_key: a secret is never written in a file; "
        "set a variable and name it as api_key_env in rowmill.yaml",
    ),
    ("name: ticket-enrichment", "", "2: name: missing; write e.g. name: ticket-enrichment"),
    ("budget: {usd: 5.00}", "budget: {}", "45: budget.usd: missing; write e.g. usd: 5.00"),
    ("sql: select * from results where topic is null, ", "", "52: audits.0.sql: missing; write e.g. sql: {sql}"),
    # Wrong kinds of values.
    ("usd: 5.00", "usd: five", '45: budget.usd: found "five", expected a number; write e.g. usd: 5.00'),
    ("usd: 5.00", "usd: '5'", '45: budget.usd: found "5", expected a number; write e.g. usd: 5.00'),
    ("usd: 5.00", "usd: .inf", "45: budget.usd: found Infinity, expected a finite number; write e.g. usd: 5.00"),
    (
        "attempts: 6",
        "attempts: true",
        "46: retry.attempts: found true, expected a whole number; write e.g. attempts: 6",
    ),
    ("attempts: 6", "attempts: 2.5", "46: retry.attempts: found 2.5, expected a whole number; write e.g. attempts: 6"),
    ("limit: 1000", "limit: true", "8: source.limit: found true, expected a number; write a number"),
    ("limit: 1000", "limit: many", '8: source.limit: found "many", expected a whole number; write e.g. limit: 1000'),
    ("key: ticket_id", "key: 5", "6: source.key: found 5, expected text or a list; write e.g. key: id"),
    ("key: ticket_id", "key: [a, 5]", "6: source.key.1: found 5, expected text; put it in quotes"),
    ("columns: [subject]", "columns: most", '35: sink.columns: found "most", expected a list or all; {columns}'),
    ("write: merge", "write: mrege", '36: sink.write: found "mrege", expected {writes}; did you mean merge?'),
    ("delivery: online", "delivery: bach", '48: delivery: found "bach", expected online or batch; did you mean batch?'),
    ("name: ticket-enrichment", "name: 5", "1: name: found 5, expected text; write e.g. name: ticket-enrichment"),
    ("endpoint: chat", "enpoint: chat", "12: steps.label.enpoint: no such key; did you mean endpoint?"),
    (
        "timeouts: {connect: 10, idle: 60, total: 600}",
        "timeouts:",
        "47: timeouts: found nothing, expected keys and values; {below}",
    ),
    ("retry: {attempts: 6, longest_wait: 60, longest_hold: 900}", "retry: 6", "46: retry: found 6, {mapping}; {below}"),
    # Values out of range.
    ("usd: 5.00", "usd: -1", "45: budget.usd: found -1, expected at least 0; write e.g. usd: 5.00"),
    ("attempts: 6", "attempts: 0", "46: retry.attempts: found 0, expected at least 1; write e.g. attempts: 6"),
    ("connect: 10", "connect: 0", "47: timeouts.connect: found 0, expected more than 0; write e.g. connect: 10"),
    ("concurrency: 200", "concurrency: 0", "43: limits.concurrency: found 0, expected at least 1; {concurrency}"),
    (
        "failed_share: 0.2",
        "failed_share: 20",
        "44: limits.failed_share: found 20, expected at most 1; write e.g. failed_share: 0.20",
    ),
    ("limit: 1000", "limit: -1", "8: source.limit: found -1, expected at least 0; write e.g. limit: 1000"),
    (
        "name: ticket-enrichment",
        "name: Ticket Enrichment",
        '1: name: found "Ticket Enrichment", expected text that matches [a-z0-9-]+; write e.g. name: ticket-enrichment',
    ),
    ("idle: 60", "idle: 1e300", "47: timeouts.idle: found 1e+300, expected at most 604800; write e.g. idle: 60"),
    ("usd: 5.00", "usd: 1e9", "45: budget.usd: found 1000000000.0, expected at most 1000000; write e.g. usd: 5.00"),
    # Keys that do not fit each other.
    (
        "name: vector",
        "name: label",
        '25: steps.1.name: "label" is the name of an earlier one too; give each its own name',
    ),
    (
        "  key: ticket_id",
        "  key: [ticket_id, ticket_id]",
        "6: source.key: names a column twice; name each once",
    ),
    (
        "delivery: online",
        'deadline: "06:00"',
        "48: deadline: requires delivery: batch; leave it out or add delivery: batch",
    ),
    (
        "delivery: online",
        "delivery: batch\ndeadline: 6am",
        '49: deadline: found "6am", not a time of day; write e.g. deadline: "06:00"',
    ),
    (
        'schedule: "0 2 * * *"',
        "schedule: daily",
        '49: schedule: found "daily", not a cron expression: wrong number of fields; write e.g. schedule: "0 2 * * *"',
    ),
    (
        'schedule: "0 2 * * *"',
        "schedule: 0 0 2 * * *",
        '49: schedule: found "0 0 2 * * *", not a cron expression: wrong number of fields; '
        'write e.g. schedule: "0 2 * * *"',
    ),
    (
        'schedule: "0 2 * * *"',
        "schedule: 61 2 * * *",
        '49: schedule: found "61 2 * * *", not a cron expression: bad minute; write e.g. schedule: "0 2 * * *"',
    ),
    (
        "on_finish: {command: notify.sh}",
        "on_finish: {}",
        "50: on_finish: takes exactly one of command and webhook; write e.g. on_finish: {command: notify.sh}",
    ),
    (
        "on_finish: {command: notify.sh}",
        "on_finish: {command: a, webhook: https://b.org}",
        "50: on_finish: takes exactly one of command and webhook; write e.g. on_finish: {command: notify.sh}",
    ),
    (
        "on_finish: {command: notify.sh}",
        "on_finish: {webhook: b.org}",
        '50: on_finish.webhook: found "b.org", expected text that matches https?://.+; {webhook}',
    ),
    (
        "deleted: keep ",
        "deleted: remove\n  write: replace #",
        "39: sink.write: already on line 36; keep one of them",
    ),
    # YAML itself.
    ('user: "{{ subject }}\\n\\n{{ body }}"', "user: {{ subject }}", "17: a key that is not text; {template}"),
    ('schedule: "0 2 * * *"', "schedule: * 2 * * *", "49: a value starts with *; put it in quotes"),
    ("  key: ticket_id", "\tkey: ticket_id", "6: a tab in the indentation; indent with spaces"),
    ("budget: {usd: 5.00}", "budget: {usd: 5.00", "46: a bracket, a brace or a comma is missing; {close}"),
    ("description: Label each", "description: So: label each", "2: a colon where none can be; {colon}"),
    (
        "delivery: online",
        "delivery: online\n---\na: 1",
        "49: a second document; keep one in a file, without a --- line",
    ),
]

# Keys that would be passed over, or spoil what Rowmill itself writes.
ONE_ERROR += [
    ("columns: [subject]", "columns: [a, a]", "35: sink.columns: names a column twice; name each once"),
    (
        "    output: body_vector",
        "    extra_body: {input: x}\n    output: body_vector",
        "31: steps.vector.extra_body.input: Rowmill sets this key itself; write input: at the step",
    ),
    *(
        ("extra_body: {}", f"extra_body: {{{key}: x}}", f"19: steps.label.extra_body.{key}: {message}")
        for key, message in {
            "messages": "Rowmill sets this key itself; write messages: at the step",
            "model": "Rowmill sets this key itself; write model: at the step",
            "stream": "Rowmill sets this key itself; write stream: at the step",
            "max_tokens": "is in params as well; leave out one of them",
            "response_format": "a typed output sets it; leave it out",
            "n": "it determines the columns; write it below params",
        }.items()
    ),
]

LONG = {
    "sql": "select * from results where topic is null",
    "writes": "merge, append or replace",
    "columns": 'write e.g. columns: ["id"]',
    "concurrency": "write e.g. concurrency: 200",
    "mapping": "expected keys and values",
    "below": "write key: value in lines below it, indented",
    "webhook": 'write e.g. webhook: "https://example.org/hook"',
    "template": 'put a template in quotes: "{{ column }}"',
    "close": "close it, or put a template in quotes",
    "colon": "check the indentation, or put a text that holds one in quotes",
}


def placeholders() -> dict[str, str]:
    from connectors.registry import ENDPOINTS, SINKS, SOURCES
    from pipelines.config.steps.local_steps import LOCAL_STEPS

    kinds = " or ".join(f"{kind}:" for kind in LOCAL_STEPS)
    local = f"a step without a request has {kinds} in its place"
    listed = {"sources": SOURCES, "sinks": SINKS, "endpoints": ENDPOINTS}
    return {**LONG, **{name: ", ".join(kinds) for name, kinds in listed.items()}, "local": local}


@pytest.mark.parametrize(("written", "replacement", "message"), ONE_ERROR)
def test_an_error_has_file_line_key_and_remedy_in_one_line(
    contract_job: str, load_error: Callable[..., str], written: str, replacement: str, message: str
) -> None:
    assert contract_job.count(written) >= 1
    for word, words in placeholders().items():
        message = message.replace(f"{{{word}}}", words)
    assert load_error(contract_job.replace(written, replacement, 1)) == f"jobs/x.yaml:{message}"


def test_structured_requires_a_typed_output(contract_job: str, load_error: Callable[..., str]) -> None:
    head, _, rest = contract_job.partition("    output:   ")
    text = f"{head}    structured: schema\n{rest[rest.index('  - name: vector') :]}"
    assert load_error(text).partition(": steps")[2] == (
        ".label.structured: applies to a typed output, and there is none; write output: {name: {type: ...}}"
    )


def test_append_requires_a_key(contract_job: str, load_error: Callable[..., str]) -> None:
    text = contract_job.replace("write: merge ", "write: append ").replace("  key: ticket_id", "  #")
    assert load_error(text) == (
        "jobs/x.yaml:36: sink.write: append recognises existing rows by their key, and there is none; "
        "add key: to the source"
    )


def test_removal_requires_merge(contract_job: str, load_error: Callable[..., str]) -> None:
    text = contract_job.replace("write: merge ", "write: replace ").replace("deleted: keep ", "deleted: remove ")
    assert load_error(text) == (
        "jobs/x.yaml:38: sink.deleted: remove requires write: merge; leave deleted out or write merge"
    )


def test_a_misspelt_key_is_reported_before_a_missing_one(contract_job: str, load_error: Callable[..., str]) -> None:
    text = contract_job.replace("name: ticket-enrichment ", "# ").replace("usd: 5.00", "us: 5.00")
    assert load_error(text) == "jobs/x.yaml:45: budget.us: no such key; did you mean usd?"


def test_steps_must_be_a_list(load_error: Callable[..., str]) -> None:
    rest = "name: a\nsource: {csv: x.csv}\nsink: {parquet: out}\n"
    advice = "write a dash before the first key of each"
    assert load_error(f"{rest}steps: {{label: {{endpoint: chat}}}}\n") == (
        f"jobs/x.yaml:4: steps: found keys and values, expected a list of steps; {advice}"
    )
    assert load_error(f"{rest}steps: []\n") == (
        f"jobs/x.yaml:4: steps: found an empty list, expected a list of steps; {advice}"
    )
    assert load_error(f"{rest}steps: [label]\n") == (
        'jobs/x.yaml:4: steps.0: found "label", expected keys and values; '
        "write name:, endpoint: and the others below a dash"
    )


def test_a_source_must_not_be_a_bare_path(contract_job: str, load_error: Callable[..., str]) -> None:
    head = contract_job.split("source:")[0]
    assert load_error(f"{head}source: data.csv\n") == (
        'jobs/x.yaml:4: source: found "data.csv", expected keys and values; write e.g. source: {parquet: PATH}'
    )


def test_a_line_break_in_a_key_is_escaped(contract_job: str, load_error: Callable[..., str]) -> None:
    assert load_error(contract_job.replace("budget:", '"bud\\nget":')) == (
        "jobs/x.yaml:45: bud\\nget: no such key; did you mean budget?"
    )
