"""Prepared job: open source, checked steps, selected rows and sink; nothing is sent here."""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from connectors.contracts import (
    EmbeddingFacts,
    Endpoint,
    Provider,
    Sink,
    SourceContext,
    StepContext,
    TableShape,
    is_reserved_name,
)
from connectors.endpoints.conversation.conversation_endpoint import ConversationStep
from connectors.endpoints.conversation.packing.packed_conversation import PackOptions
from connectors.errors import DataError, JobError, KeyPath
from connectors.media.media_reader import MediaReader
from connectors.media.url_fetcher import WebAccess
from connectors.registry import StepConfig
from connectors.sources.columns.saved_columns import saved_source
from connectors.sql import scratch_connection
from connectors.tables.schemas import errors_schema, results_schema
from connectors.transport.access.certificates import tls_context
from pipelines.config.batch_rules import check_batch_delivery
from pipelines.config.job import Job
from pipelines.config.job_graph import sinks_by_job
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.providers.proxies import checked_proxy, environment_proxy, is_direct
from pipelines.config.sql_predicate import Predicate
from pipelines.config.steps.local_steps import LocalStep
from pipelines.config.workspace import Workspace, combined_provider
from pipelines.config.workspace_file import LOCAL
from pipelines.ledger.ledger_reader import ReadableLedger
from pipelines.preparation.local_steps import PreparedLocalStep, prepare_local_step
from pipelines.preparation.row_selection import RowSelection, select_rows
from pipelines.preparation.rung_checks import check_rung, located_in_rung, vector_size
from pipelines.preparation.source_reader import SourceReader
from pipelines.quality.answer_quality import AnswerQuality, answer_quality
from pipelines.runtime.scratch_dir import scratch_folder
from pipelines.transforms.each import Each
from pipelines.transforms.fold import Fold


class PreparedStep(Struct, frozen=True):
    """One step, checked against the columns before it."""

    model: StepConfig
    provider: Provider
    """A pool appears as one provider with its name and the sum of its members' limits."""
    members: Sequence[Provider]
    """The providers that get requests: the provider itself, or the members of the pool."""
    endpoint: Endpoint
    context: StepContext
    when: Predicate | None
    quality: AnswerQuality | None = None
    """Its checks and evidence."""
    rungs: "Sequence[PreparedStep]" = ()
    """The step as each rung of `rescue` requests it; its outputs are the same."""
    rung_field: pa.Field | None = None
    """The column of the rung that answered; None without one."""
    rung: int = 0
    """Its place if it is a rung itself, from 1; 0: the step as declared."""

    def key_path(self, key: str) -> KeyPath:
        """Return the path of one of its keys in the job file."""
        return ("steps", self.model.name, *(("rescue", self.rung - 1) if self.rung else ()), key)

    @property
    def with_rungs(self) -> "Sequence[PreparedStep]":
        """The step as declared, and as each rung requests it."""
        return (self, *self.rungs)

    @property
    def fields(self) -> Sequence[pa.Field]:
        """The columns that the step adds to the results: its outputs, its evidence, and the rung."""
        return (*self.made_fields, *(() if self.rung_field is None else (self.rung_field,)))

    @property
    def made_fields(self) -> Sequence[pa.Field]:
        """The columns that checks and later steps may use: its outputs and its evidence."""
        return (*self.endpoint.fields, *(() if self.quality is None else self.quality.fields))

    @property
    def input_columns(self) -> frozenset[str]:
        """The columns before it that the step reads in any way."""
        when = frozenset() if self.when is None else self.when.columns
        return self.endpoint.input_columns | when | (frozenset() if self.quality is None else self.quality.columns)

    @property
    def file_columns(self) -> frozenset[str]:
        """The columns among `input_columns` that name files."""
        return frozenset(self.endpoint.media)

    @property
    def has_repairs(self) -> bool:
        """Whether its endpoint has repair turns."""
        return hasattr(self.model, "repairs")

    @property
    def repairs(self) -> int:
        """Repair turns of a row at most."""
        return int(getattr(self.model, "repairs", 0))

    @property
    def is_pooled(self) -> bool:
        return self.members[0] is not self.provider

    def with_structured_mode(self, mode: str) -> Endpoint:
        """Build the endpoint again, with typed output requested in another way."""
        return self.model.build(replace(self.context, structured_mode=mode))


AnyPreparedStep = PreparedStep | PreparedLocalStep


class Inputs(Struct, frozen=True):
    """What a job is assembled from: everything but the source's types and what the ledger has learned."""

    loaded: LoadedJob
    providers: Mapping[str, Sequence[Provider]]
    """Name in a step -> the providers that get its requests."""
    scratch: Path
    exact_tokens: bool
    closing: contextlib.ExitStack
    """Closes the DuckDB connections of predicates."""
    every_column: tuple[str, ...] | None = None
    """What `columns: all` means for an existing sink: its order, and no column in the names of folders that it lacks;
    None: all columns of the source."""
    kept_rungs: frozenset[str] = frozenset()
    """Steps without `rescue` whose sink has the column of a rung from earlier."""


class PreparedJob(Struct, frozen=True):
    """Everything that a run, a plan or a report needs of a job."""

    inputs: Inputs
    reader: SourceReader
    selection: RowSelection
    every_step: Sequence[AnyPreparedStep]
    """All steps in order."""
    shape: TableShape
    sink: Sink

    @property
    def loaded(self) -> LoadedJob:
        return self.inputs.loaded

    @property
    def job(self) -> Job:
        return self.inputs.loaded.job

    @property
    def workspace(self) -> Workspace:
        return self.inputs.loaded.workspace

    @property
    def steps(self) -> Sequence[PreparedStep]:
        """The steps that send requests."""
        return endpoint_steps(self.every_step)

    @property
    def local_steps(self) -> Sequence[PreparedLocalStep]:
        """The steps that send none."""
        return [step for step in self.every_step if isinstance(step, PreparedLocalStep)]

    @property
    def stored_steps(self) -> Sequence[PreparedStep]:
        """Those whose outputs are in the results: a rebuild reads them from their answers."""
        return endpoint_steps(result_steps(self.every_step))

    @property
    def computed_columns(self) -> Sequence[str]:
        """The columns of the results that answers make, and SQL of them: outputs, also of `select` and `fold` steps."""
        return [
            field.name
            for step in result_steps(self.every_step)
            if isinstance(step, PreparedStep) or step.kind in {"select", "fold"}
            for field in (step.endpoint.fields if isinstance(step, PreparedStep) else step.fields)
        ]

    @property
    def requested_steps(self) -> "Sequence[PreparedStep]":
        """The steps as declared, each followed by its rungs."""
        return [one for step in self.steps for one in step.with_rungs]

    @property
    def scratch(self) -> Path:
        """A folder that is removed after the run."""
        return self.inputs.scratch

    @property
    def sink_name(self) -> str:
        """The sink as the job file writes it; the ledger records commits under this name."""
        return self.job.sink.identity

    @property
    def is_limited(self) -> bool:
        """Whether `limit` leaves out rows of the source."""
        return self.job.source.limit is not None

    @property
    def is_removing(self) -> bool:
        """Whether rows that have left the source leave the sink; a file of no bytes removes nothing."""
        return self.job.sink.deleted == "remove" and not self.is_limited and not self.reader.has_empty_files


def no_sink_types(ready: PreparedJob) -> Mapping[str, str]:
    """Return nothing: the sink is not read."""
    return {}


@contextlib.contextmanager
def prepare_job(
    loaded: LoadedJob,
    ledger: ReadableLedger | None = None,
    local_url: str | None = None,
    exact_tokens: bool = False,
    sink_types: Callable[[PreparedJob], Mapping[str, str]] = no_sink_types,
    reinfer_types: bool = False,
    keeps_rungs: bool = True,
    reads_source: bool = True,
) -> Iterator[PreparedJob]:
    """Open the source, settle its types, build steps and sink, and select rows; nothing is sent.

    Errors in the block that begin with a key path get their file and line.

    Args:
        ledger: knows structured-output modes and embedding dimensions of earlier runs.
        local_url: address of the embedded provider, if a step uses it.
        exact_tokens: count tokens with the model's tokenizer even if no limit or budget needs it.
        sink_types: column -> SQL type in the sink; the source takes these types as far as its values allow.
        reinfer_types: take them only for columns without any value.
        keeps_rungs: with `sink_types`, a rung's column in the sink stays although its step has no `rescue` any more.
        reads_source: false: take the columns that it had when it was opened last, and no row, if these are known.

    Raises:
        JobError: the job file does not fit its source, workspace or sink.
        DataError: the source cannot be read.
    """
    check_batch_delivery(loaded)
    with (
        with_location(loaded),
        scratch_folder(loaded.workspace.state) as scratch,
        contextlib.ExitStack() as closing,
    ):
        reader = closing.enter_context(_open_source(loaded, scratch, {}, {}, reads_source))
        inputs = Inputs(loaded, _providers(loaded, local_url), scratch, exact_tokens, closing)
        ready = _assemble(inputs, reader, ledger)
        if loaded.job.sink.columns == "all" and (there := sink_columns(ready)):
            every = [name for name in reader.schema.names if name in there or name not in reader.path_columns]
            every.sort(key=lambda name: there.index(name) if name in there else len(there))
            if every != reader.schema.names:
                inputs = replace(inputs, every_column=tuple(every))
                ready = _assemble(inputs, reader, ledger)
        types = sink_types(ready)
        if keeps_rungs and sink_types is not no_sink_types and (kept := _rungs_in_sink(ready)):
            inputs = replace(inputs, kept_rungs=kept)
            ready = _assemble(inputs, reader, ledger)
        if types:
            reader.close()
            value_types = {} if reinfer_types else types
            reader = closing.enter_context(_open_source(loaded, scratch, value_types, types, reads_source))
            ready = _assemble(inputs, reader, ledger)
        yield ready


def sink_columns(ready: PreparedJob) -> tuple[str, ...]:
    """Return the columns of the sink's results; none if the table does not exist."""
    if not ready.sink.exists():
        return ()
    with scratch_connection(ready.scratch) as db:
        ready.sink.attach(db)
        try:
            columns = db.sql(f"select * from {ready.sink.results_sql()}").columns
        except duckdb.Error:
            # The sink's own check names what is wrong with its files.
            ready.sink.check(fresh=True)
            raise
        ready.sink.detach(db)
    return tuple(map(str, columns))


def _rungs_in_sink(ready: PreparedJob) -> frozenset[str]:
    """Return the steps without `rescue` whose column of the rung is in the sink."""
    others = {name.lower() for name in (*ready.shape.results.names, *(field.name for field in ready.reader.schema))}
    absent = {
        name: step.model.name
        for step in ready.stored_steps
        if step.rung_field is None and (name := rung_column(step.model.name)).lower() not in others
    }
    if not absent or ready.job.sink.write == "replace":
        return frozenset()
    return frozenset(step for name, step in absent.items() if name in sink_columns(ready))


def rung_column(step: str) -> str:
    """Return the name of the column with the rung that answered a step."""
    return f"{step}_rung"


def with_learned_facts(ready: PreparedJob, ledger: ReadableLedger) -> PreparedJob:
    """Assemble the job again after the ledger has learned embedding dimensions; the source stays open."""
    return _assemble(ready.inputs, ready.reader, ledger)


def _open_source(
    loaded: LoadedJob,
    scratch: Path,
    value_types: Mapping[str, str],
    null_types: Mapping[str, str],
    reads_source: bool,
) -> SourceReader:
    """`value_types`: types of the sink for values that several types fit; `null_types`: for columns without values."""
    workspace, job = loaded.workspace, loaded.job
    columns_file = workspace.state / "columns" / f"{job.name}.json"
    saved = None if reads_source else saved_source(columns_file)
    jobs = sinks_by_job(loaded) if job.needed_jobs and saved is None else {}
    context = SourceContext(workspace.folder, workspace.roots, scratch, jobs, value_types, columns_file)
    return SourceReader(job.source, context, null_types, saved)


def _assemble(inputs: Inputs, reader: SourceReader, ledger: ReadableLedger | None) -> PreparedJob:
    """Build steps, row selection, table shape and sink over the columns of an open source."""
    loaded, job = inputs.loaded, inputs.loaded.job
    every_step = prepare_steps(
        loaded,
        reader.schema,
        inputs.providers,
        lambda provider, step: _structured_mode(ledger, provider, step),
        inputs.exact_tokens,
        lambda provider, model: _embedding_facts(ledger, provider, model),
        inputs.kept_rungs,
    )
    for step in every_step:
        parts = (step.transform,) if isinstance(step, PreparedLocalStep) else (step.when, step.quality)
        for evaluated in parts:
            if evaluated is not None:
                inputs.closing.callback(evaluated.close)
    for step in every_step:
        evaluated_columns, place = _evaluated_columns(step)
        reader.check_fits(evaluated_columns.intersection(reader.schema.names), ("steps", step.model.name, place))
    selection = _select_rows(inputs, reader, every_step)
    # Columns that a template reads share one row with the outputs.
    _check_names(loaded, every_step, [*selection.key_schema.names, *selection.carried, *selection.read])
    shape = _table_shape(job, every_step, selection)
    sink = job.sink.open(shape, loaded.workspace.folder, job.retry.longest_hold)
    return PreparedJob(inputs, reader, selection, every_step, shape, sink)


def _select_rows(inputs: Inputs, reader: SourceReader, every_step: Sequence[AnyPreparedStep]) -> RowSelection:
    """Select the rows that the steps process."""
    job, names = inputs.loaded.job, reader.schema.names
    steps, each = endpoint_steps(every_step), open_each(every_step)
    files = {column for place in range(len(every_step)) for column in file_names(every_step, place)}
    kept_outputs = [
        field.name
        for step in endpoint_steps(result_steps(every_step))
        if step.has_repairs
        for field in (*step.endpoint.fields, *([] if step.rung_field is None else [step.rung_field]))
    ]
    return select_rows(
        reader,
        _used_columns(every_step).intersection(names),
        job.sink.columns,
        _config_digest(every_step),
        files.intersection(names),
        job.sink.write == "append",
        inputs.every_column,
        _quality_digest(steps),
        _checked_columns(steps).intersection(names),
        kept_outputs,
        None if each is None else each.index,
        _child_columns(every_step, each),
    )


def _table_shape(job: Job, every_step: Sequence[AnyPreparedStep], selection: RowSelection) -> TableShape:
    """Return the columns of the job's tables."""
    in_results = result_steps(every_step)
    stored, each = endpoint_steps(in_results), open_each(every_step)
    child_index = None if each is None else each.index
    key = list(selection.key_schema)
    if child_index is not None:
        key.append(pa.field(child_index, pa.int64()))
    outputs = [field for step in in_results for field in step.fields if field.name != child_index]
    return TableShape(
        key=tuple(field.name for field in key),
        results=results_schema(key, list(selection.carried_schema), outputs),
        errors=errors_schema(key),
        write=job.sink.write,
        outputs=tuple(field.name for step in stored for field in step.endpoint.fields),
        rungs=tuple(step.rung_field.name for step in stored if step.rung_field is not None),
        child_index=child_index,
    )


def endpoint_steps(steps: Iterable[AnyPreparedStep]) -> Sequence[PreparedStep]:
    """Return the steps that send requests."""
    return [step for step in steps if isinstance(step, PreparedStep)]


def result_steps(steps: Sequence[AnyPreparedStep]) -> Sequence[AnyPreparedStep]:
    """Return the steps whose outputs are in the results: of those between an `each` and its `fold` none are."""
    return [step for step in _steps_after_folds(steps) if step.model.keep]


def open_each(steps: Sequence[AnyPreparedStep]) -> Each | None:
    """Return the `each` whose children are the results; None if every source row is a result."""
    found = [step.transform for step in _steps_after_folds(steps) if isinstance(step, PreparedLocalStep)]
    return next((transform for transform in found if isinstance(transform, Each)), None)


def pack_of(step: StepConfig | LocalStep) -> PackOptions | None:
    """Return the step's `pack`; None if its rows do not share requests."""
    return step.pack if isinstance(step, ConversationStep) else None


def _pack_tag(step: StepConfig) -> str:
    """Return the part of a request fingerprint that keeps the answers of each `pack` apart, also of none."""
    pack = pack_of(step)
    return f";{'alone' if pack is None else pack.model_dump_json()}"


def _steps_after_folds(steps: Sequence[AnyPreparedStep]) -> Sequence[AnyPreparedStep]:
    """Return the steps whose columns the finished rows have."""
    left: list[AnyPreparedStep] = []
    begin = 0
    for step in steps:
        kind = step.kind if isinstance(step, PreparedLocalStep) else None
        if kind == "each":
            begin = len(left)
        elif kind == "fold":
            del left[begin:]
        left.append(step)
    return left


def _child_columns(steps: Sequence[AnyPreparedStep], each: Each | None) -> frozenset[str]:
    """Return the columns that the children of an open `each` differ in; none without one."""
    if each is None:
        return frozenset()
    place = next(at for at, step in enumerate(steps) if isinstance(step, PreparedLocalStep) and step.transform is each)
    return frozenset(field.name for step in steps[place:] for field in step.fields)


class _StepBuilder(Struct):
    """Builds the steps of one job over the columns that exist before each."""

    loaded: LoadedJob
    providers: Mapping[str, Sequence[Provider]]
    structured_mode: Callable[[Provider, StepConfig], str | None]
    exact_tokens: bool
    embedding: Callable[[Provider, str], EmbeddingFacts]
    kept_rungs: Collection[str]

    def step(self, step: StepConfig, columns: Mapping[str, pa.DataType]) -> PreparedStep:
        """Build a step that sends requests, with its rungs."""
        loaded = self.loaded
        declared = self._endpoint(step, columns, tag=_pack_tag(step) if step.name in loaded.compared_packs else "")
        where = ("steps", step.name, "when")
        when = None if step.when is None else Predicate(step.when, pa.schema(list(columns.items())), where)
        rungs: list[PreparedStep] = []
        for place, model in enumerate(step.rungs):
            with located_in_rung(step, place):
                rungs.append(replace(self._endpoint(model, columns, vector_size(declared.endpoint)), rung=place + 1))
            check_rung(step, place, declared.endpoint, rungs[-1].endpoint, loaded.overrides.provider is not None)
        quality = answer_quality(step, declared.endpoint.fields, columns, where[:2])
        has_rung = step.rescue or step.name in self.kept_rungs
        rung_field = pa.field(rung_column(step.name), pa.int64()) if has_rung else None
        rungs = [replace(rung, quality=quality) for rung in rungs]
        return replace(declared, when=when, quality=quality, rungs=rungs, rung_field=rung_field)

    def _endpoint(
        self, step: StepConfig, columns: Mapping[str, pa.DataType], size: int | None = None, tag: str = ""
    ) -> PreparedStep:
        """`size`: length of the vectors if nothing is known of it. `tag`: a part of all request fingerprints."""
        workspace, members = self.loaded.workspace, self.providers[step.provider]
        provider = combined_provider(step.provider, members) if step.provider in workspace.pools else members[0]
        facts = self.embedding(provider, step.model)
        context = StepContext(
            provider_tag=provider.tag + tag,
            columns=dict(columns),
            workspace=workspace.folder,
            roots=workspace.roots,
            hosts=workspace.hosts,
            structured_mode=self.structured_mode(provider, step),
            embedding=replace(facts, dimensions=size) if facts.dimensions is None else facts,
            has_exact_tokens=self.exact_tokens or _needs_token_counts(self.loaded.job, workspace, members),
            files_prefix=self.loaded.job.sink.files_prefix,
            sent_models=tuple(dict.fromkeys(member.sent_model(step.model) for member in members)),
        )
        return PreparedStep(step, provider, members, step.build(context), context, None)


def prepare_steps(
    loaded: LoadedJob,
    source: pa.Schema,
    providers: Mapping[str, Sequence[Provider]],
    structured_mode: Callable[[Provider, StepConfig], str | None],
    exact_tokens: bool,
    embedding: Callable[[Provider, str], EmbeddingFacts] = lambda provider, model: EmbeddingFacts(),
    kept_rungs: Collection[str] = (),
) -> Sequence[AnyPreparedStep]:
    """Build the steps over the columns of the source.

    `providers`: name in a step -> the providers that get its requests. `structured_mode` and `embedding`:
    what is known of a provider's model. `kept_rungs`: steps without `rescue` that keep the column of the rung.
    """
    builder = _StepBuilder(loaded, providers, structured_mode, exact_tokens, embedding, kept_rungs)
    columns: dict[str, pa.DataType] = {field.name: field.type for field in source}
    source_columns = columns
    ready: list[AnyPreparedStep] = []
    for step in loaded.job.steps:
        if isinstance(step, LocalStep):
            with with_location(loaded):
                local = prepare_local_step(step, pa.schema(list(columns.items())))
            ready.append(local)
            if isinstance(local.transform, Each):
                source_columns = dict(columns)
            elif isinstance(local.transform, Fold):
                columns = dict(source_columns)
            columns.update((field.name, field.type) for field in local.fields)
        else:
            with with_location(loaded):
                requesting = builder.step(step, columns)
            ready.append(requesting)
            columns.update((field.name, field.type) for field in requesting.made_fields)
    return ready


def _providers(loaded: LoadedJob, local_url: str | None) -> Mapping[str, Sequence[Provider]]:
    """Return name in a step or rung -> its members; of two that name an unknown provider the first is reported."""
    places: dict[str, KeyPath] = {}
    for step in loaded.job.endpoint_steps:
        places.setdefault(step.provider, ("steps", step.name, "provider"))
        for place, rung in enumerate(step.rungs):
            places.setdefault(rung.provider, ("steps", step.name, "rescue", place, "provider"))
    return {name: _members(loaded, name, where, local_url) for name, where in places.items()}


def _members(loaded: LoadedJob, name: str, where: KeyPath, local_url: str | None) -> Sequence[Provider]:
    members = loaded.workspace.members(name, loaded.locate(*where))
    if local_url is None:
        return members
    return tuple(replace(one, base_url=local_url) if one.name == LOCAL else one for one in members)


def _needs_token_counts(job: Job, workspace: Workspace, members: Sequence[Provider]) -> bool:
    """Whether a budget or a token limit needs the tokens of requests."""
    limited = (job.limits.tokens_per_minute, job.budget, workspace.budget)
    return any(limit is not None for limit in (*limited, *(member.tokens_per_minute for member in members)))


def media_reader(ready: PreparedJob) -> MediaReader:
    """Build the reader of files that rows name, within the folders and hosts that the workspace allows."""
    outputs = (ready.sink.files_prefix, ready.sink.files_folder)
    return build_media_reader(ready.workspace, ready.steps, ready.scratch, outputs)


def build_media_reader(
    workspace: Workspace, steps: Sequence[PreparedStep], scratch: Path, outputs: tuple[str, Path]
) -> MediaReader:
    """Build it without a prepared job. `outputs`: (files_prefix, files_folder) of the sink."""
    members = [member for step in steps for one in step.with_rungs for member in one.members]
    # With the port: a row may not reach other services on the provider's machine.
    urls = [urlsplit(member.base_url) for member in members]
    own = frozenset(f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}" for url in urls)
    return MediaReader(
        workspace.folder,
        workspace.roots,
        workspace.hosts,
        scratch / "media",
        own,
        state_folder=workspace.state,
        output_files=outputs,
        web_access=_web_access(members),
    )


def _web_access(members: Sequence[Provider]) -> WebAccess:
    """Return the way to the URLs of rows and replies: by the environment, else by a proxy of the job's providers."""
    own_proxy = next((member.proxy for member in members if member.proxy is not None), None)
    certificates = "\n".join(sorted({member.ca_certificates for member in members if member.ca_certificates}))

    def proxy_of(url: str) -> str | None:
        if is_direct(url):
            return None
        named = environment_proxy(url)
        return own_proxy if named is None else checked_proxy(named[1], in_file=False)

    return WebAccess(proxy_of, lambda: tls_context(certificates or None))


@contextlib.contextmanager
def with_location(loaded: LoadedJob) -> Iterator[None]:
    """Gives messages that begin with a key path, such as `steps.label.messages: …`, their file and line."""
    try:
        yield
    except (JobError, DataError) as exc:
        if exc.key_path is None:
            raise
        raise exc.located(loaded.locate(*exc.key_path, text_line=exc.text_line)) from exc


def _check_names(loaded: LoadedJob, steps: Sequence[AnyPreparedStep], taken: Sequence[str]) -> None:
    """JobError if a step's column has a reserved name, or that of another column, in the results or between steps."""
    owner = dict.fromkeys(taken, "the source")
    of_source_row = dict(owner)
    for step in steps:
        if isinstance(step, PreparedLocalStep) and isinstance(step.transform, Each):
            of_source_row = dict(owner)
        elif isinstance(step, PreparedLocalStep) and isinstance(step.transform, Fold):
            owner = dict(of_source_row)
        for field in step.fields:
            if is_reserved_name(field.name) or field.name in owner:
                found = f"{field.name or 'no text'} is a reserved name"
                if field.name in owner:
                    found = f"{owner[field.name]} has a column {field.name} as well"
                where = loaded.locate("steps", step.model.name, _key_of_column(step, field))
                raise JobError(where, found, "give this output another name")
            owner[field.name] = f"step {step.model.name}"


def _evaluated_columns(step: AnyPreparedStep) -> tuple[frozenset[str], str]:
    """The columns whose typed values decide what becomes of a row, and the key that reads them."""
    if isinstance(step, PreparedLocalStep):
        return step.input_columns, step.kind
    return (frozenset() if step.when is None else step.when.columns), "when"


def _key_of_column(step: AnyPreparedStep, field: pa.Field) -> str:
    """The key of the job file that declares a column of a step."""
    if isinstance(step, PreparedLocalStep):
        return step.kind
    return "output" if field in step.endpoint.fields else "evidence"


def file_names(steps: Sequence[AnyPreparedStep], place: int) -> frozenset[str]:
    """Return the columns that name the files of one step, as they were before earlier steps copied them."""
    found = set(steps[place].file_columns)
    for step in reversed(steps[:place]):
        if isinstance(step, PreparedLocalStep):
            found = {step.copied_columns.get(name, name) for name in found}
    return frozenset(found)


def _used_columns(steps: Sequence[AnyPreparedStep]) -> frozenset[str]:
    """The columns of the source and of steps that a template, a predicate or a local step reads."""
    named: set[str] = set()
    for step in steps:
        if isinstance(step, PreparedLocalStep):
            named |= step.input_columns
            continue
        named |= step.endpoint.input_columns
        if step.when is not None:
            named |= step.when.columns
    return frozenset(named)


def _checked_columns(steps: Sequence[PreparedStep]) -> frozenset[str]:
    """The columns of the source and of steps that a check or evidence reads."""
    return frozenset().union(*(step.quality.columns for step in steps if step.quality is not None))


def _quality_digest(steps: Sequence[PreparedStep]) -> bytes | None:
    """16 bytes over the checks and the evidence of the steps; None without any."""
    parts = [step.quality.digest for step in steps if step.quality is not None]
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest() if parts else None


def _config_digest(steps: Sequence[AnyPreparedStep]) -> bytes:
    """16 bytes over everything in the steps that can change an answer; part of each row's fingerprint."""
    digest = hashlib.blake2b(digest_size=16)
    for step in steps:
        if isinstance(step, PreparedLocalStep):
            digest.update(step.kind.encode() + b"\0" + step.model.config_bytes + b"\0")
            continue
        for part in (step.model.name, step.provider.tag, step.model.when or "", str(step.model.reuse)):
            digest.update(part.encode() + b"\0")
        digest.update(step.endpoint.config_bytes() + b"\0")
    return digest.digest()


def _structured_mode(ledger: ReadableLedger | None, provider: Provider, step: StepConfig) -> str | None:
    if ledger is None or step.schema_digest is None:
        return None
    found = ledger.query(
        "select mode from structured_modes where provider = ? and model = ? and schema = ?",
        (provider.tag, step.model, step.schema_digest),
    )
    return str(found[0][0]) if found else None


def _embedding_facts(ledger: ReadableLedger | None, provider: Provider, model: str) -> EmbeddingFacts:
    if ledger is None:
        return EmbeddingFacts()
    key = (provider.tag, model)
    sizes = ledger.query("select size from vector_sizes where provider = ? and model = ?", key)
    learned = ledger.query("select max_requests, encoding from group_terms where provider = ? and model = ?", key)
    return EmbeddingFacts(int(sizes[0][0]) if sizes else None, *(learned[0] if learned else ()))
