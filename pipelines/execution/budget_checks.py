"""Whether a budget can be guaranteed: every step has a price and a bound on what it costs."""

from connectors.errors import JobError
from connectors.tokens import context_window
from pipelines.dispatch.provider_routes import member_price, step_price
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep

_TOKEN_RATES = {
    "chat": ("input_per_million", "output_per_million"),
    "responses": ("input_per_million", "output_per_million"),
    "embeddings": ("input_per_million",),
}
"""Endpoint -> the rates without which no request has a known cost."""


def check_budget(ready: PreparedJob) -> None:
    """Raise JobError for the first step without a price or without a bound on its cost."""
    for step in ready.requested_steps:
        where = ready.loaded.locate(*step.key_path("model"))
        price = step_price(ready.workspace, step)
        if price is None:
            unpriced = [member for member in step.members if member_price(ready.workspace, step, member) is None]
            models = dict.fromkeys(
                member.sent_model(step.model.model) + (f" at {member.name}" if step.is_pooled else "")
                for member in unpriced
            )
            raise JobError(
                where,
                f"no price is known for {', '.join(models)}, so a budget cannot be guaranteed",
                "add it to `prices:` in rowmill.yaml",
            )
        _check_token_rates(ready, step)
        _check_hosted_tools(ready, step)
        _check_documents(ready, step)
        if step.endpoint.output_bound is None and price.output_per_million:
            raise JobError(
                where,
                f"nothing bounds what an answer of {step.model.model} may cost, so a budget cannot be guaranteed",
                "add params: {max_tokens: N}",
            )


def _check_token_rates(ready: PreparedJob, step: PreparedStep) -> None:
    """Refuse a price that names one rate of what every request of the step has."""
    for member in step.members:
        price = member_price(ready.workspace, step, member)
        for rate in _TOKEN_RATES.get(step.model.endpoint, ()):
            if price is not None and getattr(price, rate) is None:
                raise JobError(
                    ready.loaded.locate(*step.key_path("model")),
                    f"the price of {member.sent_model(step.model.model)} has no {rate}, "
                    "so a budget cannot be guaranteed",
                    "add it to its `prices:` in rowmill.yaml",
                )


def _check_hosted_tools(ready: PreparedJob, step: PreparedStep) -> None:
    """Refuse hosted tools without a price of a call, or without a bound on calls and their results."""
    terms = step.endpoint.billing_terms
    priced = [(member, member_price(ready.workspace, step, member)) for member in step.members]
    for member, price in priced if terms.hosted_tools else ():
        if price is None or price.is_free:
            continue
        model = member.sent_model(step.model.model)
        unpriced = sorted(terms.hosted_tools - dict(price.per_call).keys())
        if unpriced:
            tool, remedy = unpriced[0], f"add per_call: {{{unpriced[0]}: USD}} to its `prices:` in rowmill.yaml"
            reason = f"no price is known for a call of {tool} by {model}"
        elif terms.max_tool_calls is None:
            tool, remedy = min(terms.hosted_tools), "add params: {max_tool_calls: N}"
            if step.model.endpoint == "chat":
                # It has no such parameter.
                remedy = "use endpoint: responses with params: {max_tool_calls: N}"
            reason = f"nothing bounds the calls of {tool}"
        elif context_window(model) is None:
            remedy = "use a model with a known context window, or no hosted tools"
            reason = f"the context window of {model} is not known, nor what hosted tools add to it"
        else:
            continue
        key = "tools" if getattr(step.model, "tools", None) else "params"
        raise JobError(ready.loaded.locate(*step.key_path(key)), f"{reason}, so a budget cannot be guaranteed", remedy)


def _check_documents(ready: PreparedJob, step: PreparedStep) -> None:
    """Refuse documents and audio for a model without a known context window, which alone bounds their tokens."""
    for member in step.members if step.endpoint.billing_terms.has_documents else ():
        price, model = member_price(ready.workspace, step, member), member.sent_model(step.model.model)
        if price is not None and not price.is_free and context_window(model) is None:
            raise JobError(
                ready.loaded.locate(*step.key_path("model")),
                f"the context window of {model} is not known, nor the tokens of a document, "
                "so a budget cannot be guaranteed",
                "use a model with a known context window, or read the document in an earlier step",
            )
