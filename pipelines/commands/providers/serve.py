"""`rowmill serve`: the embedded provider as a server."""

import click


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port", default=8484, show_default=True, type=click.IntRange(0, 65535), metavar="PORT", help="Port to listen on."
)
@click.option("--api-key", metavar="KEY", help="Refuse requests without this key. Default: accept any key.")
@click.option("--requests-per-minute", type=click.IntRange(min=1), metavar="N", help="Answer 429 above this rate.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), metavar="N", help="Answer 429 above this rate.")
@click.option("--latency-ms", type=click.FloatRange(min=0), metavar="MS", default=0, help="Delay before each answer.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="KIND=RATE",
    help="Fail this share of requests, e.g. 500=0.01 or hang=0.001.",
)
@click.option("--script", default="", metavar="KIND,...", help='Outcomes of the first requests, e.g. "429,200,500*2".')
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
    """Serve the embedded provider as an OpenAI-style API.

    Its address is http://HOST:PORT/v1. Stop it with Ctrl-C.

    \b
    Examples:
      rowmill serve
      rowmill serve --requests-per-minute 3000 --fault 500=0.01 --latency-ms 200
    """
    from connectors.emulator.server import EmulatorOptions, serve_forever
    from connectors.errors import JobError

    try:
        options = EmulatorOptions(
            api_key=api_key,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            latency_ms=latency_ms,
            faults=faults,
            script=script,
        )
        serve_forever(host, port, options, lambda message: click.echo(message, err=True))
    except ValueError as exc:
        raise JobError("rowmill serve", str(exc), "see rowmill serve --help") from exc
    except OSError as exc:
        raise JobError("rowmill serve", f"cannot listen on {host}:{port} ({exc})", "choose another --port") from exc
