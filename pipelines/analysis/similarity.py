"""Neighbours by cosine over a column of vectors, of a row or of a text that is embedded for it."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from connectors.contracts import MalformedReply, Provider, StepContext
from connectors.endpoints.embeddings import EmbeddingsStep
from connectors.errors import JobError, did_you_mean
from connectors.records import Call, Reply, RowError
from connectors.transport.client import HttpTransport, RequestError, RequestTimeouts
from connectors.transport.error_replies import row_error
from pipelines.config.job import Job
from pipelines.config.workspace import Workspace
from pipelines.config.workspace_file import LOCAL
from pipelines.pricing.prices import FREE, cost, resolve_price, usd

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A text's vector and what it took."""

    text: str
    vector: Vector = field(repr=False)
    input_tokens: int | None
    cost_usd: float | None
    """None where the model's price is not known."""


def vector_column(frame: pl.LazyFrame, name: str | None) -> str:
    """The column of vectors with this name, or the only one; JobError where there is none."""
    vectors = [column for column, kind in frame.collect_schema().items() if isinstance(kind, pl.Array)]
    if not vectors:
        raise JobError("results", "hold no column of vectors", "add a step with endpoint: embeddings")
    if name is None:
        if len(vectors) > 1:
            raise JobError("results", "hold several columns of vectors", f"name one: column={' or '.join(vectors)}")
        return vectors[0]
    if name not in vectors:
        raise JobError("results", f"{name} is no column of vectors", f"{did_you_mean(name, vectors)}")
    return name


def nearest(frame: pl.LazyFrame, vector: Vector, column: str, k: int) -> pl.DataFrame:
    """The k rows most like the vector, the likest first; the column of vectors itself is left out."""
    # Read once: a run that is under way may add rows meanwhile.
    rows = frame.drop_nulls(column).collect()
    told = rows.with_columns(similarity=cosines(rows[column], vector)).top_k(k, by="similarity")
    return told.select("similarity", pl.exclude("similarity", column, "_run_id", "_row_fingerprint"))


def nearest_to_row(frame: pl.LazyFrame, names: Sequence[str], key: Any, column: str, k: int) -> pl.DataFrame:
    """The k rows most like the one with this key, without itself."""
    if not names:
        raise JobError("nearest", "the rows of this job have no key", "ask by text, or add key: to the source")
    values = key if isinstance(key, tuple) else (key,)
    if len(values) != len(names):
        raise JobError("nearest", f"the key is ({', '.join(names)})", f"give {len(names)} values as a tuple")
    is_it = pl.all_horizontal(pl.col(name) == value for name, value in zip(names, values, strict=True))
    found = frame.filter(is_it).select(column).collect()[column]
    if not len(found):
        raise JobError("nearest", f"no row has the key {key!r}", "look at .results for those that there are")
    if found[0] is None:
        raise JobError("nearest", f"the row {key!r} has no vector in {column}", "its step was left out for it (when:)")
    return nearest(frame.filter(~is_it), found.to_numpy()[0], column, k)


def cosines(vectors: pl.Series, to: Vector) -> npt.NDArray[np.float64]:
    """Of each vector, in their order; 0 where one of the two is all zeros."""
    matrix = vectors.to_numpy().astype(np.float64).reshape(len(vectors), -1)
    other = to.astype(np.float64)
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(other)
    products: npt.NDArray[np.float64] = matrix @ other if len(matrix) else np.zeros(0)
    told: npt.NDArray[np.float64] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return told


def embed(job: Job, workspace: Workspace, column: str, text: str) -> Embedded:
    """The vector that the step of `column` makes of the text, which stands in place of the whole rendered `input`."""
    step = _step_of(job, column)
    provider = workspace.provider(step.provider)
    asking = step.model_copy(update={"input": "{{ text }}"}).build(
        StepContext(provider.tag, {"text": pa.string()}, workspace.folder, workspace.roots, workspace.hosts)
    )
    request = asking.request({"text": text}, "")
    if isinstance(request, RowError):
        raise JobError("embed", f"{request.message}", "write another text")
    with _listening(provider) as there:
        reply = _sent(
            there, asking.call([request]), RequestTimeouts(job.timeouts.connect, job.timeouts.idle, job.timeouts.total)
        )
    if not 200 <= reply.status < 300:
        raise JobError(
            "embed", f"{provider.name} says: {row_error(reply).message}", f"ask again, or mend the step {step.name}"
        )
    try:
        (answer,) = asking.answers([request], reply)
    except MalformedReply as exc:
        raise JobError("embed", f"{provider.name}: {exc}", "ask again") from exc
    assert isinstance(answer, bytes)
    used = asking.usage([request], reply)
    price = FREE if provider.name == LOCAL else resolve_price(step.model, provider.prices, workspace.prices)
    paid = cost(price, used)
    return Embedded(text, np.frombuffer(answer, "<f4"), used.input_tokens, None if paid is None else usd(paid))


def _step_of(job: Job, column: str) -> EmbeddingsStep:
    for step in job.steps:
        if isinstance(step, EmbeddingsStep) and (step.output or step.name) == column:
            return step
    raise JobError("embed", f"no step of the job makes the column {column}", "ask with a key instead of a text")


@contextlib.contextmanager
def _listening(provider: Provider) -> Iterator[Provider]:
    """The provider; the embedded one runs meanwhile."""
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

    # A notebook's own loop is running in this thread.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(asyncio.run, send()).result()
        except RequestError as exc:
            raise JobError("embed", f"{provider.name} does not answer: {exc}", "ask again") from exc
