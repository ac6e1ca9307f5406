"""Contracts of sources, endpoints and sinks: the protocols that the pipelines rely on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import duckdb
import pyarrow as pa
from msgspec import Struct, field
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from connectors.errors import KeyPath
from connectors.records import NO_USAGE, BillingTerms, Call, Reply, Request, Row, RowError, Usage, Values

_RESERVED_NAME = re.compile("_run_id|_row_.*|_part|_key|_in_errors")


def is_reserved_name(name: str) -> bool:
    """Return whether no step may have an output of this name."""
    return not name or "\0" in name or _RESERVED_NAME.fullmatch(name) is not None


class FrozenModel(BaseModel):
    """A part of a job file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=False)


Columns = Annotated[tuple[str, ...], Field(min_length=1)]


class TextFile(FrozenModel):
    """A file of the workspace in place of a text; loading a job file replaces it by the file's text."""

    file: str = Field(min_length=1, description="Path of a text file.", examples=["prompts/label.md"])


TemplateText = Annotated[str, Field(min_length=1)] | TextFile


class SourceModel(FrozenModel):
    """The keys of every source; each kind adds the key that names it (`parquet:`, `csv:` ...)."""

    key: str | Columns | None = Field(
        default=None, description="Column or list of columns: the identity of a row; checked unique and not null."
    )
    where: str | None = Field(
        default=None, min_length=1, description="SQL predicate, pushed down to the reader; NULL is false."
    )
    limit: int | None = Field(default=None, ge=0, description="Only the first N rows in source order, after `where`.")

    @property
    def needed_jobs(self) -> Mapping[str, KeyPath]:
        """The jobs whose results it reads -> the key below `source` that names each."""
        return {}


RescuedClass = Literal["length", "invalid_answer", "content_filter", "bad_request"]


class RescueRung(FrozenModel):
    """A second way for failed rows: the step with other parameters, at another provider, or with another model."""

    on: Annotated[tuple[RescuedClass, ...], Field(min_length=1)] = Field(
        description="The error classes whose rows are requested again.", examples=[["length"]]
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="Merged into the step's params.", examples=[{"max_tokens": 2000}]
    )
    provider: str | None = Field(default=None, min_length=1, description="Provider that replaces the step's.")
    model: str | None = Field(default=None, min_length=1, description="Model that replaces the step's.")


class Check(FrozenModel):
    """A condition that every answer of a step must meet."""

    that: str = Field(
        min_length=1,
        description="SQL condition over the row so far and this step's outputs; NULL passes.",
        examples=["contains(body, quote)"],
    )
    message: str | None = Field(
        default=None,
        min_length=1,
        description="What a repair turn says about it; default: its SQL.",
        examples=["Copy the quote word for word."],
    )


def _as_check(value: Any) -> Any:
    return {"that": value} if isinstance(value, str) else value


class StepModel(FrozenModel):
    """The keys of every step; each endpoint adds more."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", description="Unique in the job.")
    provider: str = Field(default="openai", description="A name from the workspace's providers; `local` is built in.")
    model: str = Field(min_length=1, description="The model's name, as the provider writes it.")
    params: dict[str, Any] = Field(default_factory=dict, description="Parameters of the API, checked.")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="Further parameters, sent unchecked.")
    when: str | None = Field(
        default=None, min_length=1, description="SQL predicate over the row so far; outputs are null unless true."
    )
    detail: bool = Field(default=False, description="Adds the column `<step>_finish_reason`.")
    reuse: bool = Field(default=True, description="false: every row sends its own request, even if requests are equal.")
    check: tuple[Annotated[Check, BeforeValidator(_as_check, json_schema_input_type=str | Check)], ...] = Field(
        default=(),
        description="SQL conditions that an answer must meet; a row that fails one takes a repair turn.",
        examples=[["urgency between 1 and 5"]],
    )
    evidence: dict[str, str] = Field(
        default_factory=dict,
        description="Output -> column that it quotes: adds `<output>_start`, `<output>_end` and `<output>_match`.",
        examples=[{"quote": "body"}],
    )
    keep: bool = Field(
        default=True, description="false: later steps see its outputs, but the results table does not have them."
    )
    rescue: tuple[RescueRung, ...] = Field(
        default=(),
        description="Other settings for rows that fail, tried in order. Adds the column `<step>_rung`.",
        examples=[[{"on": ["length"], "params": {"max_tokens": 2000}}]],
    )

    @property
    def rungs(self) -> tuple[Self, ...]:
        """The step as each rung of `rescue` requests it."""
        return tuple(
            self.model_copy(
                update={
                    "params": {**self.params, **rung.params},
                    "provider": rung.provider or self.provider,
                    "model": rung.model or self.model,
                    "rescue": (),
                }
            )
            for rung in self.rescue
        )

    @property
    def with_rungs(self) -> tuple[Self, ...]:
        """The step as declared, and as each rung requests it."""
        return (self, *self.rungs)

    @property
    def schema_digest(self) -> bytes | None:
        """What identifies the schema of a typed output among those of a provider's model; None without one."""
        return None


UNFINGERPRINTED_KEYS = frozenset(
    {"name", "provider", "when", "detail", "reuse", "keep", "rescue", "check", "evidence", "repairs"}
)
"""Keys of a step that `Endpoint.config_bytes` leaves out: they change no answer, or enter the fingerprint apart."""


class SinkModel(FrozenModel):
    """The keys of every sink."""

    columns: tuple[str, ...] | Literal["all"] = Field(
        default=(), description="Source columns carried over to the results, in addition to the key."
    )
    write: Literal["merge", "append", "replace"] = Field(
        default="merge", description="How new rows combine with existing ones."
    )
    deleted: Literal["keep", "remove"] = Field(
        default="keep", description="Only with merge: what happens to rows that are no longer in the source."
    )


class KeyUnavailable(Exception):
    """No key can be had: what found, what to do."""


class KeySource(Protocol):
    """Keys of a provider that expire: one at a time, renewed when it is old or refused."""

    @property
    def known_keys(self) -> Sequence[str]:
        """All keys so far: they are secrets, also after they have expired."""

    def prepare(self) -> None:
        """Obtain the first key if there is none yet; JobError if that fails."""

    async def current_key(self) -> str:
        """Return the key to send; KeyUnavailable if it has to be renewed and cannot be."""

    async def renewed_key(self, rejected: str) -> str:
        """Return a key other than the rejected one if possible: callers that wait share one renewal."""


class Provider(Struct, frozen=True):
    """An API server with its key and limits."""

    name: str
    base_url: str
    api_key: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    prices: Mapping[str, Any] = field(default_factory=dict)
    """The provider's own `prices:` (model name -> pipelines.pricing.prices.PriceEntry)."""
    is_local: bool = False
    api_key_header: str | None = None
    """The header that carries the bare key; None: `Authorization: Bearer KEY`."""
    key_source: KeySource | None = None
    """In place of `api_key`: keys that expire."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to every request, like `query`; values may be secret."""
    query: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """The values of `headers` and `query` that are secret."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Model in the job -> model that is sent; a model that is not named is sent as it is."""
    ca_certificates: str | None = None
    """PEM text of certificates that are trusted besides the system's."""
    proxy: str | None = None
    """Address of the proxy of every request, perhaps with user and password; None: no proxy."""

    def __repr__(self) -> str:
        """Name it without its secrets."""
        return f"Provider({self.name!r}, {self.base_url!r})"

    @property
    def tag(self) -> str:
        """The provider's part of a request fingerprint (`here`: on this machine)."""
        return f"{self.name}@{'here' if self.is_local else 'there'}"

    def sent_model(self, model: str) -> str:
        """Return the name that this provider gets for a model of the job."""
        return self.models.get(model, model)


class SourceContext(Struct, frozen=True):
    """The surroundings of a source."""

    workspace: Path
    """Absolute; the job's relative paths start here."""
    roots: tuple[Path, ...]
    """Folders that paths may lead into."""
    scratch: Path
    """A folder for temporary files (transcoded input); created by its first user, removed after the run."""
    jobs: "Mapping[str, Sink | None]" = field(default_factory=dict)
    """For sources over other jobs: name -> sink of a job that is read, None for all others."""
    known_types: Mapping[str, str] = field(default_factory=dict)
    """Column -> SQL type in the sink's results, which a column of text keeps."""
    columns_file: Path | None = None
    """A file with the columns of the source, for when it has no rows and no header, and for `rebuild`."""


class SourceColumn(Struct, frozen=True):
    """How a column is read from a relation, if not by its name alone. All SQL is over the relation's rows."""

    value: str
    """SQL of the typed value."""
    kind: str
    """SQL type of `value`."""
    text: str | None = None
    """SQL of the value's text in the file, which templates print; None: the value has the same text."""
    misfit: str | None = None
    """SQL condition of the rows whose text has no such value, although the sink's type is this; `value` is null."""
    is_guessed: bool = False
    """Whether the type depends on all values, so that earlier versions had other texts in fingerprints."""
    is_from_path: bool = False
    """Whether the value is part of the file's path (`year=2024/`)."""
    refusal: tuple[str, str] | None = None
    """(what was found, what to do) if the column's values would change; such a column cannot be used."""


class OpenedSource(Struct, frozen=True):
    """A source that DuckDB can read."""

    relation: str
    """A SQL table expression, e.g. `read_parquet([...])`, valid on the connection it was opened on."""
    columns: Mapping[str, SourceColumn] | None = None
    """All columns in order; None: those of the relation, by their names."""
    rejects: tuple[tuple[int, str, str], ...] = ()
    """(line number, message, raw line) of unreadable lines, with `rejects: keep`."""
    urls: tuple[str, ...] = ()
    """Objects of a store that the relation reads in place; the locked connection may open them too."""
    nbytes: int = 0
    """Total size of `urls`."""
    warnings: tuple[str, ...] = ()
    """One line each, for the user."""
    has_empty_files: bool = False
    """Whether a file has no bytes: no row counts as deleted."""


class Source(Protocol):
    """An input. `connect` may ATTACH; afterwards the caller locks the connection down."""

    def paths(self, facts: SourceContext) -> Sequence[Path]:
        """Return the local files to read, sorted by name: those that the locked connection may open.

        DataError for a path without a file.
        """

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        """Make the rows visible to DuckDB; DataError (with file, row and remedy) if they are not all readable."""


class EmbeddingFacts(Struct, frozen=True):
    """What the ledger has learned of the embeddings of a provider's model; None: unknown."""

    dimensions: int | None = None
    """Length of the vectors."""
    max_texts: int | None = None
    """Texts in a request; None: no limit was met."""
    encoding: str | None = None
    """`float` if base64 was refused."""


class StepContext(Struct, frozen=True):
    """The surroundings of an endpoint: all it needs besides its keys in the job file."""

    provider_tag: str
    columns: Mapping[str, pa.DataType]
    """The columns that a template may name: the source's and those of earlier steps."""
    workspace: Path
    roots: tuple[Path, ...]
    hosts: tuple[str, ...]
    structured_mode: str | None = None
    """The mode in which the provider's model accepts the step's schema (`StructuredMode` as text); None: unknown."""
    embedding: EmbeddingFacts = EmbeddingFacts()
    has_exact_tokens: bool = True
    """Whether the model's tokenizer counts requests; without a limit or a budget a rough estimate is enough."""
    files_prefix: str = "files/"
    """Prefix of a file's name in a results column: the path from the sink to its folder of files."""
    sent_models: tuple[str, ...] = ()
    """The names by which the step's providers get its model, if `models` of the workspace gives them others."""

    def sent_model(self, model: str) -> str:
        """Return the name that decides on limits, dimensions and tokenizer of a step with this model."""
        return model if model in self.sent_models or not self.sent_models else self.sent_models[0]


class MediaColumn(Struct, frozen=True):
    """A column of files, which are read before `request`: a value becomes Media, a list of values a list of Media.

    Null stays None. A value that is not such a file, or too large, is an `input` error of its row.
    """

    kind: Literal["image", "audio", "document"]
    max_bytes: int
    passes_urls: bool = False
    """Whether a URL stays text, for the provider to fetch; else it is fetched here."""
    split: bool = False
    """Whether larger audio is cut at silences into `Media.pieces`."""


class Endpoint(Protocol):
    """The endpoint of one step: pure functions from rows to requests and from replies to typed values."""

    @property
    def path(self) -> str:
        """Below the base_url, e.g. `/embeddings`."""

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns that the step adds, in order; all nullable."""

    @property
    def input_columns(self) -> frozenset[str]:
        """The columns that its requests read."""

    @property
    def output_bound(self) -> int | None:
        """The most output tokens that one request can be billed for; None: unbounded."""

    def config_bytes(self) -> bytes:
        """Return canonical bytes of all step keys that can change an answer, for the row fingerprint."""

    def request(self, row: Row, key: str) -> Request | RowError:
        """Return the row's request, or an `input` error if its values cannot make one."""

    def requests(self, rows: Sequence[Row], keys: Sequence[str]) -> Sequence[Request | RowError]:
        """Return what `request` returns for each row, with less work."""

    def group_requests(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        """Yield the requests in groups that share one HTTP exchange, in their order."""

    def call(self, group: Sequence[Request]) -> Call:
        """Return the HTTP exchange of a group."""

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """Return the answer of each request of the group, for the ledger, from a 2xx reply; or raise MalformedReply."""

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """Return the usage of the exchange, from a 2xx reply."""

    def values(self, answer: bytes) -> Values | RowError:
        """Return one row's typed values from its stored answer, or why it does not fit."""

    @property
    def has_small_values(self) -> bool:
        """Whether values are no larger than their answer: those of small answers are read as soon as these arrive."""

    def committed_values(self, answer: bytes) -> Values | RowError:
        """Return the values of an answer that is in a table already: what an earlier release took stays."""

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        """Return a follow-up request that asks to correct an answer; None if the endpoint has none for such a problem.

        `problem`: what does not fit the types, or fails a check; then its code is CHECK_FAILED.
        """

    def fallback_mode(self, problem: RowError) -> str | None:
        """Return the next mode of typed output (`StructuredMode` as text) if `problem` refuses the present one."""

    @property
    def shares_exchanges(self) -> bool:
        """Whether a group can have several requests."""

    def group_limit(self, problem: RowError, size: int) -> int | None:
        """Return the most requests that the provider takes in a group, if `problem` refuses so many; else None."""

    def plain_encoding(self, problem: RowError) -> "tuple[Endpoint, bool] | None":
        """Return the endpoint that requests a simpler encoding, if `problem` refuses the present one; else None.

        With it: whether the words of the refusal are certain, or only possible.
        """

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """Return the step's columns, one array a field; None gives nulls."""

    @property
    def media(self) -> Mapping[str, MediaColumn]:
        """The columns among `input_columns` that hold files."""

    @property
    def dimensions_unknown(self) -> bool:
        """Whether the length of its vectors is unknown: the step can be planned, but not run."""

    @property
    def image_terms(self) -> tuple[str | None, str | None] | None:
        """(size, quality) of generated images, which set their price; None if the endpoint makes no images."""

    @property
    def billing_terms(self) -> BillingTerms:
        """What its requests name of how they are billed."""

    def expiring_urls(self, answer: bytes) -> Sequence[str]:
        """Return the URLs in an answer whose contents must be fetched before it is stored, because they expire."""

    def with_contents(self, answer: bytes, contents: Sequence[bytes]) -> bytes:
        """Return the answer with contents in place of its `expiring_urls`."""

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """Return (name by content, content) of the files that `values` names; they are written next to the table."""

    def merge_parts(self, request: Request, answers: Sequence[bytes]) -> bytes:
        """Return the answer of a request that was sent in parts, from the answers of its parts in order."""


class BaseEndpoint:
    """Defaults of an endpoint: one row in a request, and no files, parts or repairs."""

    fields: tuple[pa.Field, ...]
    media: Mapping[str, MediaColumn] = {}
    image_terms: tuple[str | None, str | None] | None = None
    dimensions_unknown: bool = False
    shares_exchanges: bool = False
    has_small_values: bool = False
    billing_terms: BillingTerms = BillingTerms()

    def request(self, row: Row, key: str) -> Request | RowError:
        """See Endpoint."""
        raise NotImplementedError

    def requests(self, rows: Sequence[Row], keys: Sequence[str]) -> Sequence[Request | RowError]:
        """Return the request of each row."""
        return [self.request(row, key) for row, key in zip(rows, keys, strict=True)]

    def group_requests(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        """Yield each request alone."""
        return ((request,) for request in requests)

    def values(self, answer: bytes) -> Values | RowError:
        """See Endpoint."""
        raise NotImplementedError

    def committed_values(self, answer: bytes) -> Values | RowError:
        """Return the same as `values`."""
        return self.values(answer)

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        """Return None: no repair."""
        return None

    def fallback_mode(self, problem: RowError) -> str | None:
        """Return None: there is one mode only."""
        return None

    def group_limit(self, problem: RowError, size: int) -> int | None:
        """Return None: every request is alone."""
        return None

    def plain_encoding(self, problem: RowError) -> "tuple[Endpoint, bool] | None":
        """Return None: there is one encoding only."""
        return None

    def expiring_urls(self, answer: bytes) -> Sequence[str]:
        """Return nothing."""
        return ()

    def with_contents(self, answer: bytes, contents: Sequence[bytes]) -> bytes:
        """Return the answer unchanged."""
        return answer

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """Return nothing."""
        return ()

    def merge_parts(self, request: Request, answers: Sequence[bytes]) -> bytes:
        """Raise: no request has parts."""
        raise AssertionError("a request without parts has no parts to merge")

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """Return one array a field; None gives nulls."""
        return [
            pa.array([None if row is None else row[index] for row in values], field.type)
            for index, field in enumerate(self.fields)
        ]


class MalformedReply(Exception):
    """A 2xx reply that the endpoint's API does not describe: retried, unless it contains an error of the row."""

    def __init__(self, message: str, error: RowError | None = None, usage: Usage = NO_USAGE) -> None:
        """`error`: the error in the reply, in spite of its status. `usage`: what the reply reports all the same."""
        super().__init__(message)
        self.error = error
        self.usage = usage


class TableShape(Struct, frozen=True):
    """Schemas of a job's tables."""

    key: tuple[str, ...]
    results: pa.Schema
    """Key columns, carried columns, outputs, `_run_id` (string), `_row_fingerprint` (string)."""
    errors: pa.Schema
    """Key columns, step, error_class ... fingerprint, as jobs/docs/tables.md lists them."""
    write: Literal["merge", "append", "replace"]
    outputs: tuple[str, ...] = ()
    """The columns of `results` that the steps make from answers."""
    rungs: tuple[str, ...] = ()
    """The columns of `results` with the rung that answered: not null, 0 for the step as declared."""
    child_index: str | None = None
    """The last key column, int64: which child of its source row a result is; None if every source row is a result."""

    @property
    def source_key(self) -> tuple[str, ...]:
        """The key columns of the source row: all its results are written, replaced and removed together."""
        return self.key if self.child_index is None else self.key[:-1]


class Commit(Struct, frozen=True):
    """Finished rows for the sink. It contains each key at most once, and all children of a source row."""

    results: pa.Table
    """Rows with all steps done; new and changed keys mixed."""
    rows_by_part: Mapping[str, Sequence[int]]
    """Existing part -> indexes in `results` of the rows whose source row has rows in that part, which they replace; all
    others are new."""
    errors: pa.Table
    """Failed rows; they replace those of the same source row in the errors table, or without a key the same details."""
    resolved_keys: pa.Table
    """Source keys of rows that succeeded, to remove from the errors table; a null key: all errors without one."""
    emptied_by_part: Mapping[str, pa.Table] = field(default_factory=dict)
    """Existing part -> source keys of rows to remove from it: their source rows have no children any more."""


class UsageMark(Struct, frozen=True):
    """A range of a ledger's exchanges that a usage table contains."""

    ledger: str
    """8 hex digits of the ledger's identity."""
    writer: int
    """The process that settled them, as the ledger numbers it."""
    first: int
    last: int
    """Sequence numbers (both inclusive) of the writer's exchanges in this part."""


class Sink(Protocol):
    """The place of a job's three tables. All methods block and are called from one thread at a time."""

    def check(self, fresh: bool) -> None:
        """Raise DataError if `prepare` would refuse the existing tables; it only reads.

        schema_checks.SchemaMismatch if results or errors have other columns than the job makes, unless `fresh`. Does
        not recover from a kill: tables in the middle of a swap are not checked.
        """

    def prepare(self, fresh: bool) -> None:
        """Recover from a kill, `check`, and create missing tables.

        `fresh`: build new results and errors next to the old ones (write: replace, rebuild) until `finish`.
        """

    def exists(self) -> bool:
        """Return whether the results table existed before `prepare`; an unfinished fresh build does not count."""

    def results_sql(self) -> str:
        """Return a SQL table expression of the committed results, with `_part` (string) for Commit.rows_by_part.

        It needs a connection that may read `paths()`, or one after `attach`.
        """

    def results_files(self) -> Mapping[str, str]:
        """Return the files of the committed results (path or URL) -> a text that differs once the file is rewritten.

        The text is empty for a file that is never rewritten. No files: what is attached does not change.
        """

    def errors_sql(self) -> str:
        """Return a SQL table expression of the errors."""

    def usage_sql(self) -> str:
        """Return a SQL table expression of the usage table."""

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the tables readable on the connection (a DuckDB file is attached read-only; Parquet needs nothing)."""

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Undo `attach`."""

    def paths(self) -> Sequence[Path | str]:
        """Return folders and files (text: URLs of an object store) that a locked connection must be allowed to read."""

    def commit(self, commit: Commit, name: str) -> None:
        """Write rows into the tables; readers never see a key twice. `name`: a part name never used before."""

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        """Append exchanges to the usage table, once for each mark."""

    def usage_marks(self) -> Sequence[UsageMark]:
        """Return the marks that the usage table contains."""

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        """Remove the rows of these source keys from results (and errors); return the number of results removed."""

    def finish(self) -> None:
        """Swap in the tables built `fresh`; compact small parts."""

    def tables(self) -> Mapping[str, str]:
        """Return results, usage and errors -> a glob or a table name, for reports."""

    @property
    def files_folder(self) -> Path:
        """The folder of the rows' media files."""

    @property
    def files_prefix(self) -> str:
        """Prefix of such a file's name in a results column: the folder, relative to the sink's, and `/`."""
