"""`rowmill models`: list the models of a provider."""

import click

from pipelines.commands.options import provider_option
from pipelines.commands.output import as_json_option, print_object, print_rows, readable


@click.group("models")
def models_command() -> None:
    """List the models of a provider.

    \b
    Examples:
      rowmill models list --provider local
      rowmill models show gpt-4o-mini
    """


@models_command.command("list")
@provider_option
@as_json_option
def list_command(provider: str, as_json: bool) -> None:
    """List the models that your key may use.

    \b
    Example:
      rowmill models list --provider local --json
    """
    from pipelines.runtime.provider_api import call_provider

    models = call_provider(provider, lambda api: api.list_models())
    if as_json:
        print_rows([dict(model) for model in models], True, "")
        return
    # Servers send more fields than the API describes: each plain value gets a column.
    fields = {name: None for model in models for name, value in model.items() if isinstance(value, str | int | float)}
    names = [name for name in fields if name not in ("id", "object")]
    rows: list[dict[str, object]] = [
        {"id": model.get("id"), **{name: readable(name, model.get(name)) for name in names}} for model in models
    ]
    print_rows(rows, False, f"{provider} lists no models")


@models_command.command("show")
@click.argument("model")
@provider_option
@as_json_option
def show_command(model: str, provider: str, as_json: bool) -> None:
    """Show one model.

    \b
    Example:
      rowmill models show text-embedding-3-small --provider local
    """
    from pipelines.runtime.provider_api import call_provider

    print_object(call_provider(provider, lambda api: api.get_model(model)), as_json)
