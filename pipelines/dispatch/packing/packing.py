"""The packing of one step: which queued requests share an exchange, and what follows from its reply."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from connectors.contracts import MalformedReply
from connectors.endpoints.conversation.conversation_endpoint import ConversationEndpoint
from connectors.endpoints.conversation.packed_conversation import PackedConversation
from connectors.records import Call, Reply, Request, RowError
from pipelines.dispatch.packing.agreement import PackAgreement, answers_agree, compared_columns, is_verified

MAX_UNVERIFIED_ANSWERS = 10_000
"""Packed answers that wait for their single ones; of more rows, agreement is not measured."""


@dataclass(slots=True)
class PackOutcome:
    """What the reply to a packed request came to."""

    answered: list[tuple[Request, bytes]] = field(default_factory=list)
    again: list[Request] = field(default_factory=list)
    """Rows without a valid answer of their own: requested again in smaller packs."""
    alone: list[Request] = field(default_factory=list)
    """Rows to be verified: requested again alone."""


class Packing:
    """Packs the requests of one step. Its size and its structured mode change while the step runs."""

    def __init__(self, endpoint: ConversationEndpoint, mode: str, can_halve: bool = True) -> None:
        """`mode`: how the schema of packed replies is requested. `can_halve`: whether agreement changes the size."""
        options = endpoint.pack_options
        assert options is not None
        self._endpoint = endpoint
        self._form: PackedConversation = endpoint.packed(mode)
        self.mode = mode
        self._verify_share = options.verify
        self.agreement = PackAgreement(options.rows, options.agreement, can_halve)
        self._columns = compared_columns(endpoint.typed_properties)
        self._unverified: dict[bytes, bytes] = {}
        """Request fingerprint -> the packed answer of a row that is also requested alone."""

    def groups(self, requests: Sequence[Request], rows: int | None = None) -> Iterator[tuple[Request, ...]]:
        """Yield requests that share an exchange; `rows`: at most so many, by default the present pack size."""
        return self._form.groups(requests, self.agreement.rows if rows is None else rows)

    def smaller_groups(self, requests: Sequence[Request], size: int) -> Iterator[tuple[Request, ...]]:
        """Yield the requests of a pack of `size` again, in packs of half the size or of one."""
        return self.groups(requests, max(1, min(size // 2, self.agreement.rows)))

    def request(self, group: Sequence[Request]) -> Request:
        """Return the packed request of several rows, as it is sent and billed."""
        return self._form.request(group)

    def call(self, packed: Request) -> Call:
        """Return the HTTP exchange of a packed request."""
        return Call("POST", self._endpoint.path, packed.body)

    def read(self, group: Sequence[Request], reply: Reply) -> PackOutcome:
        """Match the answers of a 2xx reply to the rows; MalformedReply as for a single request."""
        outcome = PackOutcome()
        for request, answer in zip(group, self._endpoint.packed_answers(self._form, group, reply), strict=True):
            if answer is None:
                outcome.again.append(request)
            elif is_verified(request.fingerprint, self._verify_share):
                if len(self._unverified) < MAX_UNVERIFIED_ANSWERS:
                    self._unverified[request.fingerprint] = answer
                outcome.alone.append(request)
            else:
                outcome.answered.append((request, answer))
        return outcome

    def record_single(self, request: Request, answer: bytes | RowError) -> None:
        """Compare the answer of a row that was requested alone with its packed one, if it has one."""
        packed = self._unverified.pop(request.fingerprint, None)
        if packed is not None:
            single = answer if isinstance(answer, RowError) else self._endpoint.values(answer)
            self.agreement.record(answers_agree(self._endpoint.values(packed), single, self._columns))

    def fall_back(self, problem: RowError) -> bool:
        """Request the schema in the next mode if `problem` refuses the present one; return whether there is one."""
        modes = list(self._endpoint.packed_modes)
        following = modes.index(self.mode) + 1 if self.mode in modes else len(modes)
        if following >= len(modes) or not self._endpoint.refuses_schema(problem):
            return False
        self.mode = modes[following]
        self._form = self._endpoint.packed(self.mode)
        return True


