"""A job made ready: source read, templates and predicates checked, endpoints and sink built; nothing is sent here."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa

from connectors.contracts import Endpoint, Provider, Sink, SourceFacts, StepFacts, TableShape
from connectors.errors import DataError, JobError
from connectors.media.media_reader import MediaReader
from connectors.registry import StepKind
from connectors.tables.schemas import errors_schema, results_schema
from pipelines.config.batch_rules import check_batched
from pipelines.config.job import Job, LoadedJob
from pipelines.config.job_graph import sinks_of_jobs
from pipelines.config.sql_predicate import Predicate
from pipelines.config.workspace import LOCAL, Workspace, as_one
from pipelines.ledger.ledger import Ledger
from pipelines.preparation.row_selection import Selection, select
from pipelines.preparation.source_reader import Reader
from pipelines.runtime.scratch_dir import scratch_folder


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """One step with what it needs, checked against the columns before it."""

    model: StepKind
    provider: Provider
    """Of a pool: its name, with the limits of its members together."""
    members: Sequence[Provider]
    """Who is asked: the provider itself, or the members of the pool."""
    endpoint: Endpoint
    facts: StepFacts
    when: Predicate | None

    @property
    def pooled(self) -> bool:
        return self.members[0] is not self.provider

    def rebuilt(self, structured: str) -> Endpoint:
        """The endpoint, asking for typed output in another way."""
        return self.model.build(replace(self.facts, structured=structured))


@dataclass(frozen=True, slots=True)
class ReadyJob:
    """Everything that a run, a plan or a look at the job needs."""

    loaded: LoadedJob
    workspace: Workspace
    reader: Reader
    selection: Selection
    steps: Sequence[ReadyStep]
    shape: TableShape
    sink: Sink
    scratch: Path
    """A folder for the time of the run."""
    sink_name: str
    """The sink as the job file writes it: under this name the ledger keeps its commits."""

    @property
    def job(self) -> Job:
        return self.loaded.job

    @property
    def limited(self) -> bool:
        """Whether only some of the source's rows are looked at."""
        return self.job.source.limit is not None

    @property
    def removing(self) -> bool:
        """Whether rows that have left the source leave the sink."""
        return self.job.sink.deleted == "remove" and not self.limited


@contextlib.contextmanager
def prepared(
    loaded: LoadedJob,
    workspace: Workspace,
    ledger: Ledger | None = None,
    local_url: str | None = None,
    jobs: Mapping[str, Sink | None] | None = None,
    exact_tokens: bool = False,
    types_of: Callable[[ReadyJob], Mapping[str, str]] = lambda ready: {},
    guessed_anew: bool = False,
) -> Iterator[ReadyJob]:
    """The job, checked as a whole before anything is sent; JobError or DataError where something does not fit.

    `ledger` tells how each provider's model was found to take typed output. `local_url`: where the embedded provider
    listens. `jobs`: name of another job -> its sink, for a `job:` source; None: they are looked for.
    `exact_tokens`: requests are counted by the model's tokenizer although no limit or budget asks for that.
    `types_of`: SQL types that columns of the source should rather have, as far as their values leave that open; with
    `guessed_anew` only those without any value.
    """
    with _prepared(loaded, workspace, ledger, local_url, jobs, exact_tokens, {}, True) as ready:
        known = types_of(ready)
        if not known:
            yield ready
            return
    with _prepared(loaded, workspace, ledger, local_url, jobs, exact_tokens, known, guessed_anew) as ready:
        yield ready


@contextlib.contextmanager
def _prepared(
    loaded: LoadedJob,
    workspace: Workspace,
    ledger: Ledger | None,
    local_url: str | None,
    jobs: Mapping[str, Sink | None] | None,
    exact_tokens: bool,
    known: Mapping[str, str],
    guessed_anew: bool,
) -> Iterator[ReadyJob]:
    """The same. `known`: what `types_of` tells."""
    job = loaded.job
    check_batched(loaded, workspace)
    with scratch_folder(workspace.state) as scratch:
        if jobs is None:
            jobs = sinks_of_jobs(loaded, workspace) if loaded.job.reads_job is not None else {}
        facts = SourceFacts(
            workspace.folder,
            workspace.roots,
            scratch,
            jobs,
            {} if guessed_anew else known,
            workspace.state / "columns" / f"{job.name}.json",
        )
        with placed(loaded):
            reader = Reader(job.source, facts, known)
        with reader, contextlib.ExitStack() as closing:
            members = {
                step.provider: _members(workspace, loaded, step, local_url)
                for step in reversed(job.steps)  # Of two steps that name a wrong one the first is told.
            }
            steps = ready_steps(
                loaded,
                workspace,
                reader.schema,
                members,
                lambda *asked: _known_way(ledger, *asked),
                exact_tokens,
                lambda *asked: _known_size(ledger, *asked),
            )
            for step in steps:
                if step.when is not None:
                    closing.callback(step.when.close)
            made = [field for step in steps for field in step.endpoint.fields]
            used = _used(steps).intersection(reader.schema.names)
            files = {name for step in steps for name in step.endpoint.media}.intersection(reader.schema.names)
            with placed(loaded):
                selection = select(
                    reader, used, job.sink.columns, _digest(steps), files, appending=job.sink.write == "append"
                )
            key, carried = list(selection.key_schema), list(selection.carried_schema)
            # What a template reads travels along with the outputs.
            _check_names(loaded, steps, [*(field.name for field in (*key, *carried)), *used])
            shape = TableShape(
                key=tuple(field.name for field in key),
                results=results_schema(key, carried, made),
                errors=errors_schema(key),
                write=job.sink.write,
                outputs=tuple(field.name for field in made),
            )
            with placed(loaded):
                sink = job.sink.open(shape, workspace.folder, job.retry.longest_hold)
            yield ReadyJob(loaded, workspace, reader, selection, steps, shape, sink, scratch, job.sink.identity)


def ready_steps(
    loaded: LoadedJob,
    workspace: Workspace,
    source: pa.Schema,
    providers: Mapping[str, Sequence[Provider]],
    known_way: Callable[[Provider, str], str | None],
    exact_tokens: bool,
    known_size: Callable[[Provider, str], int | None] = lambda provider, model: None,
) -> Sequence[ReadyStep]:
    """The steps over the columns of the source. `providers`: what a step names -> who is asked. `known_way`: how a
    provider's model was found to take typed output; `known_size`: how long its vectors were found to be."""
    columns: dict[str, pa.DataType] = {field.name: field.type for field in source}
    ready: list[ReadyStep] = []
    for step in loaded.job.steps:
        members = providers[step.provider]
        provider = as_one(step.provider, members) if step.provider in workspace.pools else members[0]
        facts = StepFacts(
            provider_tag=provider.tag,
            columns=dict(columns),
            workspace=workspace.folder,
            roots=workspace.roots,
            hosts=workspace.hosts,
            structured=known_way(provider, step.model),
            vector_size=known_size(provider, step.model),
            exact_tokens=exact_tokens or _counting(loaded.job, workspace, members),
            files_prefix=loaded.job.sink.files_prefix,
        )
        with placed(loaded):
            endpoint = step.build(facts)
            where = f"steps.{step.name}.when"
            when = None if step.when is None else Predicate(step.when, pa.schema(list(columns.items())), where)
        columns.update((field.name, field.type) for field in endpoint.fields)
        ready.append(ReadyStep(step, provider, members, endpoint, facts, when))
    return ready


def _members(workspace: Workspace, loaded: LoadedJob, step: StepKind, local_url: str | None) -> Sequence[Provider]:
    members = workspace.members(step.provider, loaded.at("steps", step.name, "provider"))
    if local_url is None:
        return members
    return tuple(replace(one, base_url=local_url) if one.name == LOCAL else one for one in members)


def _counting(job: Job, workspace: Workspace, members: Sequence[Provider]) -> bool:
    """Whether a budget or a limit of tokens needs requests to be counted."""
    limited = (job.limits.tokens_per_minute, job.budget, workspace.budget)
    return any(limit is not None for limit in (*limited, *(member.tokens_per_minute for member in members)))


def media_reader(ready: ReadyJob) -> MediaReader:
    """Reads the files that rows name, where the workspace allows it."""
    made = (ready.sink.files_prefix, ready.sink.files_folder)
    return media_reader_of(ready.workspace, ready.steps, ready.scratch, made)


def media_reader_of(
    workspace: Workspace, steps: Sequence[ReadyStep], scratch: Path, made: tuple[str, Path]
) -> MediaReader:
    """The same. `made`: (files_prefix, files_folder) of the sink."""
    # With its port: a row may not reach whatever else listens on the provider's machine.
    urls = [urlsplit(member.base_url) for step in steps for member in step.members]
    own = frozenset(f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}" for url in urls)
    return MediaReader(
        workspace.folder,
        workspace.roots,
        workspace.hosts,
        scratch / "media",
        own,
        state=workspace.state,
        made=made,
    )


@contextlib.contextmanager
def placed(loaded: LoadedJob) -> Iterator[None]:
    """Gives messages that begin with a key path, such as `steps.label.messages: …`, their file and line."""
    try:
        yield
    except (JobError, DataError) as exc:
        where, colon, what = str(exc).partition(": ")
        if not colon or where.split(".")[0] not in ("source", "steps", "sink"):
            raise
        path = [int(word) if word.isdigit() else word for word in where.split(".")]
        raise type(exc)(f"{loaded.at(*path)}: {what}") from exc


def _check_names(loaded: LoadedJob, steps: Sequence[ReadyStep], taken: Sequence[str]) -> None:
    """Two columns of one name, in the results or on the way there, are one too many."""
    owner = dict.fromkeys(taken, "the source")
    for step in steps:
        for field in step.endpoint.fields:
            if field.name in owner:
                raise JobError(
                    f"{loaded.at('steps', step.model.name, 'output')}: {owner[field.name]} has a column {field.name} "
                    "as well; give this output another name"
                )
            owner[field.name] = f"step {step.model.name}"


def _used(steps: Sequence[ReadyStep]) -> frozenset[str]:
    """Every column that a template or a predicate names, source's and steps' alike."""
    named: set[str] = set()
    for step in steps:
        named |= step.endpoint.uses
        if step.when is not None:
            named |= step.when.columns
    return frozenset(named)


def _digest(steps: Sequence[ReadyStep]) -> bytes:
    """16 bytes over everything in the steps that can change an answer; part of each row's fingerprint."""
    digest = hashlib.blake2b(digest_size=16)
    for step in steps:
        for part in (step.model.name, step.provider.tag, step.model.when or "", str(step.model.reuse)):
            digest.update(part.encode() + b"\0")
        digest.update(step.endpoint.declared() + b"\0")
    return digest.digest()


def _known_way(ledger: Ledger | None, provider: Provider, model: str) -> str | None:
    if ledger is None:
        return None
    found = ledger.query("select structured from modes where provider = ? and model = ?", (provider.tag, model))
    return str(found[0][0]) if found else None


def _known_size(ledger: Ledger | None, provider: Provider, model: str) -> int | None:
    if ledger is None:
        return None
    found = ledger.query("select size from vector_sizes where provider = ? and model = ?", (provider.tag, model))
    return int(found[0][0]) if found else None
