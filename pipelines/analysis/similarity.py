"""Nearest rows by cosine similarity over a vector column, for a row or for a text that is embedded."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa
from msgspec.structs import replace

from connectors.contracts import MalformedReply, Provider, StepContext
from connectors.endpoints.embeddings import EmbeddingsStep
from connectors.errors import JobError, did_you_mean
from connectors.records import Call, Reply, RowError
from connectors.transport.client import HttpTransport, RequestError, RequestTimeouts
from connectors.transport.error_replies import row_error
from pipelines.config.job import Job
from pipelines.config.workspace import Workspace
from pipelines.config.workspace_file import LOCAL
from pipelines.dispatch.request_rendering import with_sent_model
from pipelines.pricing.prices import FREE, cost, usd
from pipelines.pricing.published_prices import resolve_price

try:
    import numpy as np
    import numpy.typing as npt
except ImportError as exc:
    raise ImportError("similarity: numpy is not there; pip install 'rowmill[notebook]'") from exc

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A text's vector and the usage of its request."""

    text: str
    vector: Vector = field(repr=False)
    input_tokens: int | None
    cost_usd: float | None
    """None if the model's price is not known."""


def vector_column(frame: pl.LazyFrame, name: str | None) -> str:
    """Return the vector column with this name, or the only one; JobError if there is none."""
    vectors = [column for column, kind in frame.collect_schema().items() if isinstance(kind, pl.Array)]
    if not vectors:
        raise JobError("results", "hold no column of vectors", "add a step with endpoint: embeddings")
    if name is None:
        if len(vectors) > 1:
            raise JobError("results", "hold several columns of vectors", f"name one: column={' or '.join(vectors)}")
        return vectors[0]
    if name not in vectors:
        raise JobError("results", f"{name} is not a column of vectors", did_you_mean(name, vectors))
    return name


def nearest(frame: pl.LazyFrame, vector: Vector, column: str, k: int) -> pl.DataFrame:
    """Return the k rows nearest to the vector, the nearest first, without the vector column."""
    # Read once: a running job may add rows in the meantime.
    rows = frame.drop_nulls(column).collect()
    result = rows.with_columns(similarity=cosines(rows[column], vector)).top_k(k, by="similarity")
    return result.select("similarity", pl.exclude("similarity", column, "_run_id", "_row_fingerprint"))


def nearest_to_row(frame: pl.LazyFrame, names: Sequence[str], key: Any, column: str, k: int) -> pl.DataFrame:
    """Return the k rows nearest to the row with this key, without that row."""
    if not names:
        raise JobError("nearest", "the rows of this job have no key", "search by text, or add key: to the source")
    values = key if isinstance(key, tuple) else (key,)
    if len(values) != len(names):
        raise JobError("nearest", f"the key is ({', '.join(names)})", f"give {len(names)} values as a tuple")
    is_it = pl.all_horizontal(pl.col(name) == value for name, value in zip(names, values, strict=True))
    found = frame.filter(is_it).select(column).collect()[column]
    if not len(found):
        raise JobError("nearest", f"no row has the key {key!r}", "see the keys in .results")
    if found[0] is None:
        raise JobError("nearest", f"the row {key!r} has no vector in {column}", "its step was left out for it (when:)")
    return nearest(frame.filter(~is_it), found.to_numpy()[0], column, k)


def cosines(vectors: pl.Series, to: Vector) -> npt.NDArray[np.float64]:
    """Cosine similarity of each vector, in order; 0 if one of the two vectors is all zeros."""
    matrix = vectors.to_numpy().astype(np.float64).reshape(len(vectors), -1)
    other = to.astype(np.float64)
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(other)
    products: npt.NDArray[np.float64] = matrix @ other if len(matrix) else np.zeros(0)
    result: npt.NDArray[np.float64] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return result


def embed(job: Job, workspace: Workspace, column: str, text: str) -> Embedded:
    """Embed the text with the step of `column`; the text replaces the whole rendered `input`."""
    step = _step_of(job, column)
    provider = workspace.provider(step.provider)
    if provider.key_source is not None:
        provider.key_source.prepare()
    asking = step.model_copy(update={"input": "{{ text }}"}).build(
        StepContext(
            provider.tag,
            {"text": pa.string()},
            workspace.folder,
            workspace.roots,
            workspace.hosts,
            sent_models=(provider.sent_model(step.model),),
        )
    )
    request = asking.request({"text": text}, "")
    if isinstance(request, RowError):
        raise JobError("embed", request.message, "write another text")
    with _listening(provider) as there:
        reply = _sent(
            there,
            with_sent_model(asking.call([request]), provider),
            RequestTimeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total),
        )
    if not 200 <= reply.status < 300:
        raise JobError(
            "embed", f"{provider.name} answered: {row_error(reply).message}", f"try again, or fix the step {step.name}"
        )
    try:
        (answer,) = asking.answers([request], reply)
    except MalformedReply as exc:
        raise JobError("embed", f"{provider.name}: {exc}", "try again") from exc
    assert isinstance(answer, bytes)
    used = asking.usage([request], reply)
    price = (
        FREE
        if provider.name == LOCAL
        else resolve_price(provider.sent_model(step.model), provider.prices, workspace.prices)
    )
    paid = cost(price, used)
    return Embedded(text, np.frombuffer(answer, "<f4"), used.input_tokens, None if paid is None else usd(paid))


def _step_of(job: Job, column: str) -> EmbeddingsStep:
    for step in job.endpoint_steps:
        if isinstance(step, EmbeddingsStep) and (step.output or step.name) == column:
            return step
    raise JobError("embed", f"no step of the job makes the column {column}", "search by key instead of text")


@contextlib.contextmanager
def _listening(provider: Provider) -> Iterator[Provider]:
    """The step's provider; the embedded one is started while it is used."""
    if provider.name != LOCAL:
        yield provider
        return
    from connectors.emulator.server import EmulatorServer

    with EmulatorServer() as server:
        yield replace(provider, base_url=server.base_url)


def _sent(provider: Provider, call: Call, timeouts: RequestTimeouts) -> Reply:
    async def send() -> Reply:
        transport = HttpTransport(timeouts, 1)
        try:
            return await transport.send(provider, call)
        finally:
            await transport.close()

    # The notebook's event loop is running in this thread.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(asyncio.run, send()).result()
        except RequestError as exc:
            raise JobError("embed", f"{provider.name} does not answer: {exc}", "try again") from exc
