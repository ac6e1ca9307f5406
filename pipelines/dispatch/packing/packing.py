"""The packing of one step: which queued requests share an exchange, and what follows from its reply."""

import itertools
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from connectors.contracts import Endpoint
from connectors.endpoints.conversation.conversation_endpoint import ConversationEndpoint
from connectors.endpoints.conversation.packing.packed_conversation import PackedAnswer, PackedConversation, PackOptions
from connectors.endpoints.conversation.structured.structured_modes import StructuredMode
from connectors.error_classes import ROW_ERROR_CLASSES
from connectors.records import Call, Reply, Request, RowError, Usage
from pipelines.dispatch.packing.agreement import PackAgreement, answers_agree, compared_columns, is_verified
from pipelines.ledger.entries import AnswerRecord, UnverifiedAnswer

StoreMode = Callable[[str], Coroutine[Any, Any, None]]
"""Stores a structured mode for later runs."""

MAX_UNVERIFIED_ANSWERS = 50_000
"""Packed answers in memory that wait for their single ones; of more rows, agreement is not measured."""


def packing_of(endpoint: Endpoint, store_mode: StoreMode | None = None, can_halve: bool = True) -> "Packing | None":
    """Return the packing of a step with `pack`; None for any other. See Packing."""
    if not isinstance(endpoint, ConversationEndpoint) or endpoint.pack_options is None:
        return None
    return Packing(endpoint, store_mode, can_halve)


class Packing:
    """Packs the requests of one step. Its size and its structured mode change while the step runs."""

    def __init__(
        self, endpoint: ConversationEndpoint, store_mode: StoreMode | None = None, can_halve: bool = True
    ) -> None:
        """`store_mode` remembers what was learned; `can_halve`: whether agreement changes the pack size."""
        # Without options it reads the packs of a batch that was submitted when the step had them.
        options = endpoint.pack_options or PackOptions()
        self._endpoint = endpoint
        self._form: PackedConversation = endpoint.packed(endpoint.packed_mode)
        self.mode = endpoint.packed_mode
        """The structured mode in which the schema of packs is requested."""
        self._store_mode = store_mode
        self._verify_share = options.verify
        self.agreement = PackAgreement(options.rows, options.agreement, can_halve)
        self._columns = compared_columns(endpoint.typed_properties)
        self._unverified: dict[bytes, bytes | None] = {}
        """Request fingerprint -> the packed answer of a row that is also requested alone; None: it is not compared."""

    def restore(self, packed_answers: Mapping[bytes, bytes]) -> None:
        """Take packed answers of an earlier run, by request fingerprint: these rows are requested alone only."""
        for fingerprint, answer in packed_answers.items():
            self._add_unverified(fingerprint, answer)

    def _add_unverified(self, fingerprint: bytes, answer: bytes) -> None:
        is_kept = len(self._unverified) < MAX_UNVERIFIED_ANSWERS
        self._unverified.setdefault(fingerprint, answer if is_kept else None)

    def groups(self, requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
        """Yield requests that share an exchange, of the present pack size; rows with a packed answer go alone."""
        return self._groups(requests, self.agreement.rows)

    def smaller_groups(self, requests: Sequence[Request], size: int) -> Iterator[tuple[Request, ...]]:
        """Yield requests of a pack of `size` that have no answer yet: in packs of half the size, at last alone.

        Rows that are to be verified go alone.
        """
        return self._groups(requests, max(1, min(size // 2, self.agreement.rows)))

    def possible_groups(self, group: tuple[Request, ...]) -> Iterator[tuple[Request, ...]]:
        """Yield every group that may be sent for these rows: if no pack answers any, all of them down to single rows.

        A verified row is requested alone just once as well.
        """
        yield group
        if len(group) > 1:
            for smaller in self._form.groups(group, len(group) // 2):
                yield from self.possible_groups(smaller)

    def _groups(self, requests: Sequence[Request], rows: int) -> Iterator[tuple[Request, ...]]:
        if not self._unverified:
            return self._form.groups(requests, rows)
        alone = [(request,) for request in requests if self.is_unverified((request,))]
        others = [request for request in requests if request.fingerprint not in self._unverified]
        return itertools.chain(alone, self._form.groups(others, rows))

    def is_unverified(self, group: Sequence[Request]) -> bool:
        """Return whether these are a single row whose packed answer waits for its single one."""
        return len(group) == 1 and group[0].fingerprint in self._unverified

    def is_verified(self, request: Request) -> bool:
        """Return whether a row of a pack is requested alone too."""
        return is_verified(request.fingerprint, self._verify_share)

    def request(self, group: Sequence[Request]) -> Request:
        """Return the packed request of several rows, as it is sent and billed."""
        return self._form.request(group)

    def call(self, packed: Request) -> Call:
        """Return the HTTP exchange of a packed request."""
        return Call("POST", self._endpoint.path, packed.body)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[PackedAnswer | None]:
        """Return each row's answer from a 2xx reply as if it had been requested alone; None: to be requested again.

        MalformedReply as for a single request.
        """
        answers = list(self._endpoint.packed_answers(self._form, group, reply))
        if not self._verify_share:
            return answers
        for place, (request, answer) in enumerate(zip(group, answers, strict=True)):
            if answer is not None and self.is_verified(request):
                self._add_unverified(request.fingerprint, answer[0])
                answers[place] = None
        return answers

    def unverified_changes(
        self, group: Sequence[Request], answers: Sequence[AnswerRecord]
    ) -> Sequence[UnverifiedAnswer]:
        """Return what the ledger remembers of packed answers, now that a group's reply was interpreted.

        `answers`: what it stores of the same reply.
        """
        if not self._unverified:
            return ()
        if len(group) == 1:
            return [(fingerprint, None) for fingerprint, *_ in answers if fingerprint in self._unverified]
        waiting = ((request.fingerprint, self._unverified.get(request.fingerprint)) for request in group)
        return [(fingerprint, answer) for fingerprint, answer in waiting if answer is not None]

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """Return the usage of a packed exchange."""
        return self._endpoint.usage(group, reply)

    @property
    def is_verifying(self) -> bool:
        """Whether packed answers wait for their single ones."""
        return bool(self._unverified)

    def verify(self, request: Request, answer: bytes | RowError) -> bool | None:
        """Return whether the answer of a row that was requested alone equals its packed one; None if it has none."""
        if request.fingerprint not in self._unverified:
            return None
        if isinstance(answer, RowError) and answer.error_class not in ROW_ERROR_CLASSES:
            # It has no answer yet: the next run requests it, alone.
            return None
        packed = self._unverified.pop(request.fingerprint)
        if packed is None:
            return None
        single = answer if isinstance(answer, RowError) else self._endpoint.values(answer)
        is_equal = answers_agree(self._endpoint.values(packed), single, self._columns)
        self.agreement.record(is_equal)
        return is_equal

    def record_refused(self, problem: RowError, mode: StructuredMode | None) -> bool:
        """Change to a simpler mode if `problem` refuses the schema of packs; return whether to send the pack again.

        `mode`: that of the refused pack; None: unknown, as in a batch of an earlier run. Of many that are refused
        together, the first changes the mode.
        """
        mode = mode or self._endpoint.packed_mode
        following = self._endpoint.next_packed_mode(mode, self._form, problem)
        if following is None:
            return False
        if mode == self.mode:
            self.mode, self._form = following, self._endpoint.packed(following)
        return True

    def record_accepted(self) -> Coroutine[Any, Any, None] | None:
        """Learn from an answered pack; return the write to the ledger that follows, if any."""
        store, self._store_mode = self._store_mode, None
        # The mode of typed answers is learned by single requests.
        is_learned = self.mode != self._endpoint.packed_mode and self._endpoint.typed_properties is None
        return store(str(self.mode)) if store is not None and is_learned else None
