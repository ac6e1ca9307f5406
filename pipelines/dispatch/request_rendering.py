"""Requests rendered from rows: the same for a plan and a run."""

import re
from collections.abc import Collection, Sequence

import orjson
import pyarrow as pa
from msgspec.structs import replace

from connectors.contracts import Endpoint, Provider
from connectors.records import TEXT_PREFIX, Call, Request, RowError
from connectors.templating.row_values import row_values
from pipelines.dispatch.media_files import MediaSource, read_media

_MODEL_FIRST = re.compile(rb'\{"model":("(?:[^"\\]|\\.)*")')
"""The beginning of a body that names its model first, as most endpoints write it."""


def with_sent_model(call: Call, provider: Provider) -> Call:
    """Return the call with the provider's own name of the model; fingerprints are made of the job's name."""
    if not provider.models:
        return call
    if call.form is not None:
        fields = (
            (name, provider.sent_model(value) if name == "model" and isinstance(value, str) else value, filename)
            for name, value, filename in call.form
        )
        return replace(call, form=tuple(fields))
    body = call.body or b""
    if found := _MODEL_FIRST.match(body):
        sent = orjson.dumps(provider.sent_model(orjson.loads(found[1])))
        return replace(call, body=b'{"model":' + sent + body[found.end() :])
    values = orjson.loads(body)
    return replace(call, body=orjson.dumps({**values, "model": provider.sent_model(values["model"])}))


async def render_requests(
    endpoint: Endpoint, table: pa.Table, keys: Sequence[str], rows: Collection[int], media: MediaSource
) -> dict[int, Request | RowError]:
    """Render the requests of the rows at these indexes; a RowError for a row whose values make no request.

    `keys`: one for each row of the table; texts of values in the source file are in columns with TEXT_PREFIX. `media`
    reads the files that the rows name.
    """
    texts = {TEXT_PREFIX + name for name in endpoint.input_columns}.intersection(table.column_names)
    values = row_values(table.select(sorted({*endpoint.input_columns, *texts})))
    if not endpoint.media:
        chosen = endpoint.requests([values[index] for index in rows], [keys[index] for index in rows])
        return dict(zip(rows, chosen, strict=True))
    with_media = await read_media(media, values, endpoint.media, rows)
    requests: dict[int, Request | RowError] = {}
    for index in rows:
        row = with_media.get(index, values[index])
        requests[index] = row if isinstance(row, RowError) else endpoint.request(row, keys[index])
    return requests
