"""Faults of the set-up: a model or path that does not exist, and one fault that meets every row of a step."""

from collections import deque
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from msgspec import Struct, field
from msgspec.structs import replace

from connectors.error_classes import ROW_ERROR_CLASSES, ErrorClass
from connectors.records import Call, RowError, is_rescued
from connectors.transport.fault_table import masked_words, names_model
from pipelines.dispatch.reply_handling import ExchangeOutcome
from pipelines.dispatch.request_types import RequestGroup, Route
from pipelines.ledger.entries import AnswerRecord

FIRST_ROWS = 20
"""Rows that must all fail with the same words before their fault counts as one of the set-up."""
MISSING_IN_A_ROW = 3
"""Replies in a row without the model or path, after which one that has answered before counts as gone."""

Signature = tuple[int | None, str | None, str | None, str]
"""Status, code, param and masked words of an error: equal for rows that meet the same fault."""


class _Step(Struct):
    """What the first rows of a step have come to."""

    is_proven: bool
    """Whether a row was answered, or failed otherwise than those before: every further request may be sent."""
    in_flight: int = 0
    """Rows."""
    failed: int = 0
    """Rows, all with the same signature."""
    waiting: deque[RequestGroup] = field(default_factory=deque)
    split_off: set[int] = field(default_factory=set)
    """Identities of groups that count as in flight although they wait in the queue, or are about to be split."""

    def has_room(self, group: RequestGroup) -> bool:
        """Whether the group may be sent before the step is proven."""
        return not self.in_flight or self.in_flight + self.failed + _rows(group) <= FIRST_ROWS


class _Model(Struct):
    """Whether a provider has answered with a model, and its replies in a row that deny it."""

    has_answered: bool
    has_answered_now: bool = False
    """In this invocation."""
    missing: list[Signature] = field(default_factory=list)


class FirstRows(Struct):
    """The first rows of a step that one provider has settled."""

    is_proven: bool
    signature: Signature | None = None
    failed: int = 0
    message: str = ""
    """Of the last row that failed."""


class SetupFaults:
    """The faults of one run's set-up. Until a step is proven, at most FIRST_ROWS of its rows are sent."""

    def __init__(self, is_retrying: bool = False) -> None:
        """`is_retrying`: a `retry` sends failed rows, so equal failures prove nothing."""
        self._is_retrying = is_retrying
        self._steps: dict[str, _Step] = {}
        self.first_rows: dict[tuple[str, str], FirstRows] = {}
        """By step and provider."""
        self._held_records: dict[tuple[str, str], list[AnswerRecord]] = {}
        """Errors of the first rows, by step and provider: for the ledger if they turn out to be the rows' own."""
        self._models: dict[tuple[str, str], _Model] = {}
        self.joint_fault: str | None = None
        """What `merge` has found: maybe only after all rows were settled."""
        self.signatures: set[tuple[str, Signature]] = set()
        """Of (step, error) whose rows failed because of the set-up."""

    def is_proven(self, route: Route) -> bool:
        """Whether failures of the step's rows are their own."""
        return self._step(route).is_proven

    def is_proven_member(self, member: Route) -> bool:
        """Whether this provider has answered a row of the step, or refused some for different reasons."""
        return self._member(member).is_proven

    def admit(self, group: RequestGroup) -> bool:
        """Return whether a group may be sent now; if not, it waits until `leave` returns it."""
        step = self._step(group.route)
        if step.is_proven:
            return True
        if id(group) in step.split_off:
            step.split_off.remove(id(group))
            return True
        if not step.has_room(group):
            step.waiting.append(group)
            return False
        step.in_flight += _rows(group)
        return True

    def leave(self, group: RequestGroup) -> list[RequestGroup]:
        """Record that a group is no longer in flight; return the waiting ones to be queued now."""
        step = self._step(group.route)
        if step.is_proven and not step.waiting:
            # How many are in flight counts only until the step is proven.
            return []
        if id(group) not in step.split_off:
            step.in_flight = max(0, step.in_flight - _rows(group))
        if step.is_proven:
            waiting, step.waiting = list(step.waiting), deque()
            return waiting
        return [step.waiting.popleft()] if step.waiting and step.has_room(step.waiting[0]) else []

    def begin_split(self, group: RequestGroup) -> None:
        """Count a refused group as in flight until `split`: no other group goes before its requests."""
        self._step(group.route).split_off.add(id(group))

    def split(self, group: RequestGroup) -> Sequence[RequestGroup]:
        """Return what a refused group is sent as now: its halves.

        Before a row is answered, the second half of a large pack waits, and another group's first requests go alone.
        """
        step = self._step(group.route)
        step.split_off.discard(id(group))
        step.in_flight = max(0, step.in_flight - _rows(group))
        if step.is_proven:
            return group.halves()
        if group.is_packed:
            first, second = group.halves()
            has_room = step.in_flight + step.failed + _rows(group) <= FIRST_ROWS
            parts, rest = ([first, second], None) if has_room else ([first], second)
        else:
            alone, rest = group.first_alone(FIRST_ROWS)
            parts = list(alone)
        step.in_flight += sum(map(_rows, parts))
        step.split_off.update(map(id, parts))
        if rest is not None:
            # Before packs that were not sent yet.
            step.waiting.appendleft(rest)
        return parts

    def confirm(self, member: Route, call: Call | None, error: RowError | None, is_pooled: bool) -> RowError | None:
        """Return the error with its class: a missing model or path, or a refused certificate, may be one row's own.

        It is the set-up's at once if this provider has never answered with the model, else after three in a row.
        """
        model = self._model(member)
        if error is None or error.error_class in ROW_ERROR_CLASSES:
            # Who refuses a row's content knows the model.
            model.has_answered = model.has_answered or error is None
            model.has_answered_now = model.has_answered_now or error is None
            model.missing.clear()
            return error
        if error.error_class != "setup":
            return error
        found = _with_address(error, member, call)
        model.missing.append(signature(found))
        is_page = error.http_status is not None and error.http_status < 300
        if model.has_answered and (len(model.missing) < MISSING_IN_A_ROW or (is_page and model.has_answered_now)):
            return replace(found, error_class=_fallback_class(error, is_pooled))
        self.signatures.update((member.step, one) for one in model.missing)
        # A connection's fault has its remedy already.
        remedy = "" if found.http_status is None else f"; {_remedy(found, member)}"
        return replace(found, message=f"{found.message}{remedy}")

    def is_suspect(self, group: RequestGroup, member: Route, outcome: ExchangeOutcome) -> bool:
        """Whether an error may turn out to be the set-up's: then the ledger stores no error of the row."""
        # The row of a group may fail alone.
        if len(outcome.answers) > 1:
            return False
        answer = outcome.answers[0] if outcome.answers else None
        error = outcome.error or (answer if isinstance(answer, RowError) else None)
        if error is None:
            return False
        is_first = not self._are_own(group.route, member) and not has_rung_left(group, error)
        return is_first or self._denies_model(error)

    def _denies_model(self, error: RowError | None) -> bool:
        """Return whether an error is one of the last replies without a model or path."""
        return error is not None and any(signature(error) in model.missing for model in self._models.values())

    def stored_answers(
        self, route: Route, member: Route, records: Sequence[AnswerRecord], is_suspect: bool
    ) -> Sequence[AnswerRecord]:
        """Return what the ledger stores of an exchange; errors that may be the set-up's wait for the proof."""
        key = (member.step, member.provider.name)
        if is_suspect:
            # A model that is missing for now may be gone later, with the same words: such errors are never stored.
            held = [record for record in records if not self._denies_model(record[3])]
            self._held_records.setdefault(key, []).extend(held)
            return ()
        if not self._held_records or not self._are_own(route, member):
            return records
        return (*self._held_records.pop(key, ()), *records)

    def settle_outcome(self, group: RequestGroup, member: Route, outcome: ExchangeOutcome) -> str | None:
        """Do the same as `settle`; an error that is known to be the set-up's becomes one of its class."""
        only = outcome.answers[0] if outcome.error is None and len(outcome.answers) == 1 else None
        error = outcome.error or (only if isinstance(only, RowError) else None)
        reason = self.settle(group, member, error)
        if error is not None and error.error_class == "bad_request" and self.is_setup(member.step, error):
            outcome.error, outcome.answers = replace(error, error_class="setup"), ()
        return reason

    def settle(self, group: RequestGroup, member: Route, error: RowError | None) -> str | None:
        """Record how rows were settled; return why nothing more should be sent to this provider, or None.

        `error`: of the rows; None if they were answered.
        """
        step, first = self._step(group.route), self._member(member)
        if step.is_proven and first.is_proven:
            return None
        if error is None or error.error_class != "bad_request":
            step.is_proven = first.is_proven = True
            return None
        if group.route.endpoint.fallback_mode(error) is not None:
            # The rows are requested again in a simpler mode.
            return None
        if has_rung_left(group, error):
            # The rows are requested again by a rung, whose outcome counts.
            return None
        words = signature(error)
        if first.signature not in (None, words):
            step.is_proven = first.is_proven = True
            return None
        first.signature, first.message = words, error.message
        rows = _rows(group)
        first.failed += rows
        step.failed += rows
        if first.is_proven or first.failed < FIRST_ROWS:
            return None
        self.signatures.add((member.step, words))
        return _same_fault(member.step, member.provider.name, first)

    def merge(self, parts: Sequence[Mapping[tuple[str, str], FirstRows]]) -> str | None:
        """Judge the first rows that several workers have settled as one run's; return why to stop, or None."""
        for step, provider in {key for part in parts for key in part}:
            found = [part[step, provider] for part in parts if (step, provider) in part]
            signatures = {one.signature for one in found if one.signature is not None}
            failed = sum(one.failed for one in found)
            if len(signatures) == 1 and failed >= FIRST_ROWS and not any(one.is_proven for one in found):
                (words,) = signatures
                self.signatures.add((step, words))
                message = next(one.message for one in found if one.message)
                self.joint_fault = _same_fault(step, provider, FirstRows(False, words, failed, message))
                return self.joint_fault
        return None

    def is_setup(self, step: str, error: RowError) -> bool:
        """Whether the error of a row is known to be the set-up's."""
        return bool(self.signatures) and (step, signature(error)) in self.signatures

    def _are_own(self, route: Route, member: Route) -> bool:
        """Whether failures of rows are their own: in a pool, the others' answers prove nothing of this member."""
        return self.is_proven(route) if route.pool is None else self.is_proven_member(member)

    def _step(self, route: Route) -> _Step:
        found = self._steps.get(route.step)
        if found is None:
            proven = self._is_retrying or any(one.is_step_proven for one in (route, *route.members))
            found = self._steps[route.step] = _Step(proven)
        return found

    def _member(self, member: Route) -> FirstRows:
        key = (member.step, member.provider.name)
        if key not in self.first_rows:
            self.first_rows[key] = FirstRows(self._is_retrying or member.is_step_proven)
        return self.first_rows[key]

    def _model(self, member: Route) -> _Model:
        key = (member.provider.name, member.model)
        if key not in self._models:
            self._models[key] = _Model(member.is_model_proven)
        return self._models[key]


def _fallback_class(error: RowError, is_pooled: bool) -> ErrorClass:
    """Return the class of a fault that is not known to be the set-up's."""
    if error.http_status is None:
        return "connection"
    if error.http_status < 300:
        return "malformed_reply"
    return "server" if is_pooled or error.http_status >= 500 else "bad_request"


def _same_fault(step: str, provider: str, first: FirstRows) -> str:
    return (
        f"each of the first {first.failed} rows of step {step} met the same fault at {provider}: "
        f"{first.message}; "
        "correct the step in the job file, or the provider in rowmill.yaml, and run again: these rows are requested "
        "again"
    )


def has_rung_left(group: RequestGroup, error: RowError) -> bool:
    """Whether the rows of a group are requested again by a rung after this error."""
    return all(is_rescued(request, error) for request in group.requests)


def signature(error: RowError) -> Signature:
    """Return what is equal for rows that meet the same fault."""
    return (error.http_status, error.code, error.param, masked_words(error.message))


def request_address(member: Route, call: Call | None) -> str:
    """Return the address that was requested, without its query and without a name or password in it."""
    parts = urlsplit(member.provider.base_url)
    host = parts.netloc.rpartition("@")[2]
    path = "" if call is None else call.path.partition("?")[0]
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}{path}"


def _rows(group: RequestGroup) -> int:
    return sum(max(1, len(request.keys)) for request in group.requests)


def _with_address(error: RowError, member: Route, call: Call | None) -> RowError:
    if error.http_status is None or _names_model(error):
        return error
    method = "POST" if call is None else call.method
    return replace(error, message=f"{error.message} ({method} {request_address(member, call)})")


def _names_model(error: RowError) -> bool:
    return names_model((error.code, error.type), error.message, error.param)


def _remedy(error: RowError, member: Route) -> str:
    provider = member.provider.name
    if _names_model(error):
        name = member.model or "the model"
        return f"correct `model` of step {member.step}, or make {name} available at {provider}, and run again"
    return f"correct base_url of the provider {provider} in rowmill.yaml (most end in /v1) and run again"
