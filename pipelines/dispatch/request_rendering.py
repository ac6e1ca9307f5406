"""Requests rendered from rows, and values read from answers: the same for a plan and a run."""

from collections.abc import Collection, Sequence

import pyarrow as pa

from connectors.contracts import Endpoint
from connectors.records import Request, RowError, Values
from pipelines.dispatch.media_files import MediaSource, read_media


async def render_requests(
    endpoint: Endpoint, table: pa.Table, keys: Sequence[str], rows: Collection[int], media: MediaSource
) -> dict[int, Request | RowError]:
    """Render the requests of the rows at these indexes; a RowError for a row whose values make no request.

    `keys`: one for each row of the table. `media` reads the files that the rows name.
    """
    values = table.select(sorted(endpoint.input_columns)).to_pylist()
    with_media = await read_media(media, values, endpoint.media, rows) if endpoint.media else {}
    requests: dict[int, Request | RowError] = {}
    for index in rows:
        row = with_media.get(index, values[index])
        requests[index] = row if isinstance(row, RowError) else endpoint.request(row, keys[index])
    return requests


def read_answer(endpoint: Endpoint, request: Request, answer: bytes) -> Values | Request | RowError:
    """Return the values of an answer; if it is invalid, the request for its repair, or the error if there is none."""
    values = endpoint.values(answer)
    if isinstance(values, RowError) and (repair := endpoint.repair(request, answer, values)) is not None:
        return repair
    return values
