"""The seams: what a source, an endpoint and a sink promise to the pipelines above them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import duckdb
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from connectors.records import Call, Reply, Request, Row, RowError, Usage, Values


class Model(BaseModel):
    """A part of a job file: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=False)


Columns = Annotated[tuple[str, ...], Field(min_length=1)]


class SourceModel(Model):
    """The keys that every kind of source shares; each kind adds the key that names it (`parquet:`, `csv:` ...)."""

    key: str | Columns | None = Field(
        default=None, description="Column or list of columns: the identity of a row; checked unique and not null."
    )
    where: str | None = Field(
        default=None, min_length=1, description="SQL predicate, pushed down to the reader; NULL is false."
    )
    limit: int | None = Field(default=None, ge=0, description="Only the first N rows in source order, after `where`.")


class StepModel(Model):
    """The keys that every kind of step shares; each endpoint adds its own."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", description="Unique in the job.")
    provider: str = Field(default="openai", description="A name from the workspace's providers; `local` is built in.")
    model: str = Field(min_length=1, description="The model to ask.")
    params: dict[str, Any] = Field(default_factory=dict, description="The API's own parameters, checked.")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="Sent as it is, unchecked.")
    when: str | None = Field(
        default=None, min_length=1, description="SQL predicate over the row so far; else the outputs are null."
    )
    detail: bool = Field(default=False, description="Adds the column `<step>_finish_reason`.")
    reuse: bool = Field(default=True, description="false: equal requests of different rows are each asked, once.")


class SinkModel(Model):
    """The keys that every kind of sink shares."""

    columns: tuple[str, ...] | Literal["all"] = Field(
        default=(), description="Source columns carried over besides the key."
    )
    write: Literal["merge", "append", "replace"] = Field(default="merge", description="How rows meet those there.")
    deleted: Literal["keep", "remove"] = Field(default="keep", description="merge only: rows that left the source.")


@dataclass(frozen=True, slots=True)
class Provider:
    """Where requests go, under which key and limits."""

    name: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    prices: Mapping[str, Any] = field(default_factory=dict)
    """The provider's own `prices:` (model name -> pipelines.pricing.prices.PriceEntry)."""
    is_local: bool = False

    @property
    def tag(self) -> str:
        """The provider's part of a request fingerprint."""
        return f"{self.name}@{'here' if self.is_local else 'there'}"


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source needs to know of its surroundings."""

    workspace: Path
    """Absolute; the job's relative paths start here."""
    roots: tuple[Path, ...]
    scratch: Path
    """A folder for temporary files (transcoded input); made by its user, removed after the run."""
    jobs: "Mapping[str, Sink | None]" = field(default_factory=dict)
    """For `job:` sources: the jobs that there are; name -> the sink with the results of the one that is read."""
    known_types: Mapping[str, str] = field(default_factory=dict)
    """Column -> SQL type that it has in the sink's results: of types that values leave open, this one is chosen."""
    columns_file: Path | None = None
    """Where a source whose columns are told by its rows alone notes them for a time when it has none."""


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source ready to be read by DuckDB."""

    relation: str
    """A SQL table expression, e.g. `read_parquet([...])`, valid on the connection it was opened on."""
    rejects: tuple[tuple[int, str, str], ...] = ()
    """(line number, message, raw line) of lines that could not be read, with `rejects: keep`."""
    urls: tuple[str, ...] = ()
    """Objects of a store that the relation reads in place; the locked connection may open them as well."""
    nbytes: int = 0
    """How large those are together."""


class Source(Protocol):
    """A kind of input. `connect` may ATTACH; afterwards the caller locks the connection down."""

    def paths(self, facts: SourceContext) -> Sequence[Path]:
        """The files of this machine that it reads, sorted by name; what the locked connection may open. DataError where
        a path names none."""

    def connect(self, connection: duckdb.DuckDBPyConnection, facts: SourceContext) -> OpenedSource:
        """Make the rows visible; DataError (with file, row and remedy) where they cannot be read whole."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What an endpoint needs to know besides its own keys in the job file."""

    provider_tag: str
    columns: Mapping[str, pa.DataType]
    """The columns a template may name: the source's and those of earlier steps."""
    workspace: Path
    roots: tuple[Path, ...]
    hosts: tuple[str, ...]
    structured_mode: str | None = None
    """How this provider's model was found to take a typed `output`: schema, json_object or prompt; None: not known."""
    embedding_dimensions: int | None = None
    """How long this provider's model was found to make its vectors; None: not known."""
    has_exact_tokens: bool = True
    """Whether requests are counted by the model's tokenizer; else roughly, where no limit and no budget needs more."""
    files_prefix: str = "files/"
    """What stands before the name of a file in a results column: the way from the sink to its folder of files."""


@dataclass(frozen=True, slots=True)
class MediaUse:
    """How a column of files is read before `request` sees it: values become Media, a list of them a list of Media.

    Null stays None. A value that is no such file, or too large, makes an `input` error of its row.
    """

    kind: Literal["image", "audio"]
    max_bytes: int
    """Bytes."""
    passes_urls: bool = False
    """A URL stays the text that it is, for the provider to fetch; else it is fetched here."""
    split: bool = False
    """A sound that is larger is cut at silences into `Media.pieces`."""


class Endpoint(Protocol):
    """One step's endpoint: pure functions from rows to requests and from replies to typed values."""

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
        """At most so many output tokens can be billed for one request; None where nothing bounds them."""

    def config_bytes(self) -> bytes:
        """Canonical bytes of everything in the step that can change an answer; for the row fingerprint."""

    def request(self, row: Row, key: str) -> Request | RowError:
        """The row's request, or an `input` error where the row's values cannot make one."""

    def group_requests(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        """The requests in the groups in which they are sent, order kept."""

    def call(self, pack: Sequence[Request]) -> Call:
        """The one HTTP exchange that asks for the whole pack."""

    def answers(self, pack: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """What the ledger keeps for each request of the pack, from a 2xx reply; MalformedReply where it is none."""

    def usage(self, pack: Sequence[Request], reply: Reply) -> Usage:
        """What the exchange used, from a 2xx reply."""

    def values(self, answer: bytes) -> Values | RowError:
        """One row's typed values from its kept answer, or why it does not fit."""

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        """The one further turn that asks to mend an answer that does not fit; None where there is none (left)."""

    def fallback_mode(self, problem: RowError) -> str | None:
        """The next way (`json_object`, `prompt`) to ask for typed output when `problem` refuses the present one."""

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """The step's columns, one array a field; None gives nulls."""

    @property
    def media(self) -> Mapping[str, MediaUse]:
        """The columns among `uses` that hold files."""

    @property
    def dimensions_unknown(self) -> bool:
        """Whether its vectors have no known length yet: it can be planned, but not run."""

    @property
    def image_terms(self) -> tuple[str | None, str | None] | None:
        """(size, quality) of the images it makes, which set their price; None where it makes none."""

    def expiring_urls(self, answer: bytes) -> Sequence[str]:
        """URLs in an answer whose contents must be fetched before it is kept for good: they expire."""

    def with_contents(self, answer: bytes, contents: Sequence[bytes]) -> bytes:
        """The answer with the contents of its `links` in place of them."""

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """(name by content, content) of the files that `values` names, to be written beside the table."""

    def merge_parts(self, request: Request, answers: Sequence[bytes]) -> bytes:
        """The answer of a request that was asked in parts, of the answers of its parts in their order."""


class SingleRowEndpoint:
    """What most endpoints do: one row a request; no files in or out, no parts, nothing to mend."""

    media: Mapping[str, MediaUse] = {}
    image_terms: tuple[str | None, str | None] | None = None
    dimensions_unknown: bool = False

    def group_requests(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        """Each alone."""
        return ((request,) for request in requests)

    def repair(self, request: Request, answer: bytes, problem: RowError) -> Request | None:
        """There is nothing to mend."""
        return None

    def fallback_mode(self, problem: RowError) -> str | None:
        """There is one way only."""
        return None

    def expiring_urls(self, answer: bytes) -> Sequence[str]:
        """None."""
        return ()

    def with_contents(self, answer: bytes, contents: Sequence[bytes]) -> bytes:
        """As it is."""
        return answer

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """None."""
        return ()

    def merge_parts(self, request: Request, answers: Sequence[bytes]) -> bytes:
        """Never asked for: no request has parts."""
        raise AssertionError("a request without parts has no parts to join")


class MalformedReply(Exception):
    """A 2xx reply that is not what the endpoint's API describes: asked again, unless it tells an error of its own."""

    def __init__(self, message: str, error: RowError | None = None) -> None:
        """`error`: what the reply tells, where it is an error object in spite of its status."""
        super().__init__(message)
        self.error = error


@dataclass(frozen=True, slots=True)
class TableShape:
    """What the results table of a job looks like."""

    key: tuple[str, ...]
    results: pa.Schema
    """key columns, carried columns, outputs, `_run_id` (string), `_row_fingerprint` (string)."""
    errors: pa.Schema
    """key columns, step, error_class ... fingerprint, as in the contract."""
    write: Literal["merge", "append", "replace"]
    outputs: tuple[str, ...] = ()
    """The columns of `results` that the steps made."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Finished rows on their way into the sink. Each key stands at most once in it."""

    results: pa.Table
    """Rows with all steps done; new keys and changed ones mixed."""
    rows_by_part: Mapping[str, Sequence[int]]
    """Existing part -> indexes in `results` of the rows that replace a row of that part; all others are new."""
    errors: pa.Table
    """Rows that failed; a key that stands in the errors table already is replaced, one without a key where the details
    are equal."""
    resolved_keys: pa.Table
    """Key columns only: rows to be taken out of the errors table, since they succeeded. A null key stands for all
    errors without a key."""


@dataclass(frozen=True, slots=True)
class UsageMark:
    """Up to which exchange of which ledger a usage table is written."""

    ledger: str
    """8 hex digits of the ledger's identity."""
    writer: int
    """The process that settled them: a number from the ledger."""
    first: int
    last: int
    """Sequence numbers (both inclusive) of the writer's exchanges in this part."""


class Sink(Protocol):
    """Where a job's three tables live. All methods block and are called from one thread at a time."""

    def check(self, fresh: bool) -> None:
        """DataError where `prepare` would refuse what is there; shapes.OtherColumns where results or errors have other
        columns than the job makes, which those of a `fresh` build may. Only reads; what a kill left is not recovered:
        tables in the midst of a swap are not looked at."""

    def prepare(self, fresh: bool) -> None:
        """Recover what a kill left behind, `check`, and see that each table exists with its schema. `fresh`: results
        and errors are built anew beside the old ones (write: replace, rebuild) until `finish`."""

    def exists(self) -> bool:
        """Whether the results table exists already (before prepare); not where it was begun by a fresh build that was
        never finished."""

    def results_sql(self) -> str:
        """A SQL table expression of the committed results with the column `_part` (string: what Commit.replaced
        names) added; on a connection that may read `paths()` or after `attach`."""

    def errors_sql(self) -> str:
        """A SQL table expression of the errors."""

    def usage_sql(self) -> str:
        """A SQL table expression of the usage table."""

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the tables readable on the connection (a DuckDB file is attached read-only; Parquet needs nothing)."""

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Undo `attach`."""

    def paths(self) -> Sequence[Path | str]:
        """The folders or files (as text: URLs of an object store) that a locked connection must be allowed to read for
        these expressions."""

    def commit(self, commit: Commit, name: str) -> None:
        """Rows into the tables, readers never seeing a key twice. `name`: a part name never used before."""

    def add_usage(self, usage: pa.Table, mark: UsageMark) -> None:
        """Append exchanges to the usage table, once a mark."""

    def usage_marks(self) -> Sequence[UsageMark]:
        """What the usage table holds already."""

    def remove(self, keys: pa.Table, errors_too: bool) -> int:
        """Take the rows of these keys out of results (and errors); how many results went."""

    def finish(self) -> None:
        """Swap in what was built `fresh`; compact small parts."""

    def tables(self) -> Mapping[str, str]:
        """For people and programs: results, usage, errors -> a glob or a table name."""

    @property
    def files_folder(self) -> Path:
        """Where media files of the rows are written."""

    @property
    def files_prefix(self) -> str:
        """What stands before such a file's name in a results column: the folder, relative to the sink's, and `/`."""
