"""What a run costs: usage in every provider's shape, the service tier of the reply, and calls of hosted tools."""

from typing import Any

import pytest

from tests.conftest import chat_reply

TIERED = """
providers:
  test: {{base_url: "{url}"}}
prices:
  m:
    input_per_million: 1
    cached_input_per_million: 0.1
    output_per_million: 10
    tiers: {{flex: 0.5, priority: 2.0}}
  gpt-4.1: {{input_per_million: 1, output_per_million: 10, per_call: {{web_search: 0.01}}}}
  unknown: {{input_per_million: 1, output_per_million: 10, per_call: {{web_search: 0.01}}}}
"""


@pytest.fixture
def prices(workspace: Any, provider: Any) -> None:
    """The prices of TIERED."""
    workspace.write("rowmill.yaml", TIERED.format(url=provider.base_url))


def steps(params: str = "{max_tokens: 1000}", model: str = "m", more: str = "") -> str:
    """One chat step."""
    return (
        f'[{{name: answer, endpoint: chat, provider: test, model: {model}, messages: [{{user: "{{{{ text }}}}"}}], '
        f"params: {params}{more}}}]"
    )


def answers_with(usage: Any, **more: Any) -> Any:
    """A script that answers every request with this usage."""
    return lambda path, body, count: {**chat_reply("x"), "usage": usage, **more}


SHAPES: dict[str, tuple[Any, tuple[int, int | None, int, int | None], float]] = {
    "xAI": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 810,
            "completion_tokens_details": {"reasoning_tokens": 700},
        },
        (100, None, 710, 700),
        0.0072,
    ),
    "DeepSeek": (
        {
            "prompt_tokens": 1000,
            "completion_tokens": 10,
            "total_tokens": 1010,
            "prompt_cache_hit_tokens": 900,
            "prompt_cache_miss_tokens": 100,
        },
        (1000, 900, 10, None),
        0.00029,
    ),
    "Moonshot": (
        {"prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010, "cached_tokens": 900},
        (1000, 900, 10, None),
        0.00029,
    ),
    "Anthropic": (
        {
            "input_tokens": 50,
            "cache_creation_input_tokens": 50,
            "cache_read_input_tokens": 900,
            "output_tokens": 10,
        },
        (1000, 900, 10, None),
        0.00029,
    ),
    "OpenRouter": (
        {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110, "cost": 0.05},
        (100, None, 10, None),
        0.05,
    ),
    "an unnamed kind": (
        {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 510},
        (100, None, 410, None),
        0.0042,
    ),
}


@pytest.mark.parametrize(("usage", "tokens", "dollars"), SHAPES.values(), ids=SHAPES)
def test_every_shape_of_usage_is_charged_in_full_and_stops_at_the_budget(
    workspace: Any, provider: Any, cli: Any, read: Any, prices: None, usage: Any, tokens: Any, dollars: float
) -> None:
    provider.script = answers_with(usage)
    workspace.csv(40)
    budget = 0.02 + 2.5 * dollars
    report = cli.run(workspace.job(steps=steps(), limits="{concurrency: 1}", budget=f"{{usd: {budget}}}"))
    rows = read(workspace.folder / "out", "usage")
    names = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    assert {tuple(row[name] for name in names) for row in rows} == {tokens}
    assert {row["cost_usd"] for row in rows} == {dollars}
    assert report["cost_usd"] == pytest.approx(len(rows) * dollars)
    assert report["cost_usd"] <= budget or dollars == 0.05


@pytest.mark.parametrize(
    ("asked", "served", "dollars"),
    [
        (None, None, 0.0002),
        (None, "default", 0.0002),
        (None, "flex", 0.0001),
        ("flex", "flex", 0.0001),
        ("flex", "standard", 0.0002),
        ("auto", "priority", 0.0004),
        ("priority", None, 0.0004),
    ],
)
def test_the_served_tier_sets_the_cost_and_is_in_the_usage(
    workspace: Any, provider: Any, cli: Any, read: Any, prices: None, asked: Any, served: Any, dollars: float
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    provider.script = answers_with(usage, service_tier=served)
    workspace.csv(2)
    tier = "" if asked is None else f", service_tier: {asked}"
    report = cli.run(workspace.job(steps=steps(f"{{max_tokens: 20{tier}}}")))
    rows = read(workspace.folder / "out", "usage")
    assert [(row["service_tier"], row["tool_calls"], row["cost_usd"]) for row in rows] == [(served, None, dollars)] * 2
    assert report["cost_usd"] == 2 * dollars


def test_a_streamed_reply_has_the_tier_of_its_last_chunk(
    workspace: Any, provider: Any, cli: Any, read: Any, prices: None
) -> None:
    from aiohttp import web

    text = (
        'data: {"service_tier": "auto", "choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
        'data: {"service_tier": "flex", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
        'data: {"choices": [], "x_groq": {"usage": {"prompt_tokens": 100, "completion_tokens": 10}}}\n\n'
        "data: [DONE]\n\n"
    )
    provider.script = lambda path, body, count: web.Response(text=text, content_type="text/event-stream")
    workspace.csv(1)
    assert cli.run(workspace.job(steps=steps(more=", stream: true")))["cost_usd"] == 0.0001
    (row,) = read(workspace.folder / "out", "usage")
    assert (row["service_tier"], row["input_tokens"], row["output_tokens"]) == ("flex", 100, 10)


def test_a_tier_without_a_price_costs_what_was_reserved_for_it_and_is_named(
    workspace: Any, provider: Any, cli: Any, read: Any, prices: None
) -> None:
    provider.script = answers_with({"prompt_tokens": 100, "completion_tokens": 10}, service_tier="scale")
    workspace.csv(2)
    assert cli("run", workspace.job(steps=steps())) == 0
    assert "no price is known for the service tier scale of m:" in " ".join(cli.out.split())
    rows = read(workspace.folder / "out", "usage")
    assert [(row["service_tier"], row["cost_usd"]) for row in rows] == [("scale", 0.0004)] * 2


@pytest.mark.parametrize(("asked", "is_enough"), [("flex", True), ("default", False), ("auto", False), (None, False)])
def test_the_reservation_is_at_the_most_expensive_tier_that_may_serve(
    workspace: Any, provider: Any, cli: Any, prices: None, asked: Any, is_enough: bool
) -> None:
    workspace.csv(1)
    tier = "" if asked is None else f", service_tier: {asked}"
    # 1,000 output tokens cost $0.005 by flex, $0.01 by default, and $0.02 by priority.
    job = workspace.job(steps=steps(f"{{max_tokens: 1000{tier}}}"), budget="{usd: 0.006}")
    assert (cli.run(job)["exit_code"] == 0) is is_enough
    assert len(provider.seen) == is_enough


def hosted(params: str, model: str = "gpt-4.1", tool: str = "web_search_preview") -> str:
    """One step of responses with a hosted tool."""
    return (
        f"[{{name: answer, endpoint: responses, provider: test, model: {model}, dialect: openai, "
        f'input: "{{{{ text }}}}", tools: [{{type: {tool}}}], params: {params}}}]'
    )


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (hosted("{max_output_tokens: 100}"), "nothing bounds the calls of web_search"),
        (
            '[{name: answer, endpoint: chat, provider: test, model: gpt-4.1, messages: [{user: "{{ text }}"}], '
            "params: {max_tokens: 100, web_search_options: {}}}]",
            "a budget cannot be guaranteed; use endpoint: responses with params: {max_tool_calls: N}",
        ),
        (hosted("{max_output_tokens: 100, max_tool_calls: 2}", model="unknown"), "context window of unknown"),
        (
            hosted("{max_output_tokens: 100, max_tool_calls: 2}", tool="code_interpreter, container: {type: auto}"),
            "no price is known for a call of code_interpreter",
        ),
    ],
)
def test_a_hosted_tool_that_nothing_bounds_is_refused_under_a_budget(
    workspace: Any, provider: Any, cli: Any, prices: None, step: str, message: str
) -> None:
    workspace.csv(1)
    assert cli("run", workspace.job(steps=step, budget="{usd: 5}")) == 2
    assert message in cli.err and "so a budget cannot be guaranteed" in cli.err
    assert provider.seen == []
    remedy = cli.err.strip().rpartition("; ")[2]
    assert cli("plan", workspace.job(steps=step)) == 0
    assert f"no upper bound: {remedy}" in " ".join(cli.out.split())


def test_calls_of_hosted_tools_are_counted_charged_and_reserved(
    workspace: Any, provider: Any, cli: Any, read: Any, prices: None
) -> None:
    calls = [{"type": "web_search_call", "id": f"ws_{n}", "status": "completed"} for n in range(2)]
    text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}
    provider.script = lambda path, body, count: {
        "object": "response",
        "status": "completed",
        "model": "gpt-4.1",
        "service_tier": "default",
        "output": [*calls, text],
        "usage": {"input_tokens": 1000, "output_tokens": 10, "total_tokens": 1010},
    }
    workspace.csv(1)
    step = hosted("{max_output_tokens: 100, max_tool_calls: 2}")
    # The window of 1,047,576 tokens for each of three turns costs $3.15, two calls $0.02.
    job = workspace.job(steps=step, budget="{usd: 3.1}")
    assert cli.run(job)["exit_code"] == 3
    assert provider.seen == []
    assert cli("plan", job) == 0
    assert "3.16" in cli.out
    report = cli.run(job, "--budget-usd", "3.2")
    assert (report["exit_code"], report["cost_usd"]) == (0, 0.0211)
    (row,) = read(workspace.folder / "out", "usage")
    assert (row["tool_calls"], row["service_tier"], row["cost_usd"]) == (2, "default", 0.0211)


def test_a_reply_of_zero_tokens_costs_its_maximum_and_the_summary_says_so(
    workspace: Any, provider: Any, cli: Any, read: Any
) -> None:
    workspace.csv(1)
    provider.tokens = (0, 0)
    assert cli("run", workspace.job()) == 0
    (usage,) = read(workspace.folder / "out", "usage")
    assert (usage["input_tokens"], usage["output_tokens"]) == (0, 0)
    # 20 output tokens at 2 dollars a million, and some input.
    assert usage["cost_usd"] > 40e-6
    assert "test reports 0 tokens for answers of m: they count at their maximum cost" in " ".join(cli.out.split())
