"""`rowmill serve`: the local provider as a server."""

import click


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8484, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option("--api-key", help="Refuse requests without this key. Default: any key is accepted.")
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="Refuse what is above this, with 429.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="Refuse what is above this, with 429.")
@click.option("--latency-ms", type=click.FloatRange(min=0), default=0, help="Wait so long before each answer.")
@click.option(
    "--fault", "faults", multiple=True, metavar="KIND=RATE", help="Fail so often, e.g. 500=0.01 or hang=0.001."
)
@click.option("--script", default="", metavar="KIND,...", help='How the first requests end, e.g. "429,200,500*2".')
def serve_command(
    host: str,
    port: int,
    api_key: str | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    latency_ms: float,
    faults: tuple[str, ...],
    script: str,
) -> None:
    """Serve the local provider under http://HOST:PORT/v1, as an OpenAI-style API, until Ctrl-C.

    \b
    Examples:
      rowmill serve
      rowmill serve --requests-per-minute 3000 --fault 500=0.01 --latency-ms 200
    """
    from connectors.emulator.server import LocalOptions, serve_forever
    from connectors.errors import JobError

    try:
        options = LocalOptions(
            api_key=api_key,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            latency_ms=latency_ms,
            faults=faults,
            script=script,
        )
        serve_forever(host, port, options, lambda words: click.echo(words, err=True))
    except ValueError as exc:
        raise JobError("rowmill serve", f"{exc}", "see rowmill serve --help") from exc
    except OSError as exc:
        raise JobError("rowmill serve", f"cannot listen on {host}:{port} ({exc})", "choose another --port") from exc
