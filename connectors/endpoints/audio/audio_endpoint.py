"""What transcription and translation share: a sound goes up, its words come down."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import orjson
import pyarrow as pa

from connectors.contracts import MediaColumn, SingleRowEndpoint, StepContext, StepModel
from connectors.endpoints.audio.transcript_replies import (
    COLUMNS,
    LOGPROBS,
    merge_transcripts,
    stored_answer,
    transcript_logprobs,
    transcript_struct,
    transcript_text,
    transcript_usage,
)
from connectors.endpoints.params.checks import ParamCheck
from connectors.endpoints.params.step_params import fixed_params, optional_template, step_config_bytes
from connectors.errors import JobError
from connectors.media.multipart import build_form, check_file_column, row_files
from connectors.records import Call, Media, Reply, Request, Row, RowError, Usage, Values, request_fingerprint
from connectors.templating.template import RenderError
from connectors.templating.template_tree import TemplateTree
from connectors.tokens import count_tokens, max_output_tokens

MAX_UPLOAD_BYTES = 25 << 20
"""Bytes of an upload: the reference, section 13.4.4."""

TOKENS_PER_MINUTE = 1_000
"""Of sound, for models that are charged by token: their price a minute over their price a token."""


class TranscriptEndpoint(SingleRowEndpoint):
    """The endpoint of one step that turns sound into text."""

    def __init__(
        self,
        step: StepModel,
        context: StepContext,
        path: str,
        own: Sequence[str],
        table: Mapping[str, ParamCheck],
        texts: Sequence[str],
    ) -> None:
        """`own`: the step's keys that are sent as they stand; `texts`: those that are templates."""
        self.where = ("steps", step.name)
        self.path = path
        self._step = step
        self._tag = context.provider_tag
        settings: Any = step
        self._file = check_file_column(settings.file, context.columns, (*self.where, "file"))
        self._texts: dict[str, TemplateTree] = {}
        for name in texts:
            found = optional_template(getattr(step, name), context.columns, (*self.where, name))
            if found is not None:
                self._texts[name] = found
        self.input_columns = frozenset({self._file}).union(*(text.columns for text in self._texts.values()))
        self.media = {self._file: MediaColumn("audio", MAX_UPLOAD_BYTES, split=settings.split)}
        self._fixed = fixed_params(step, own, table, self.where)
        self.form = str(self._fixed.get("response_format", "json"))
        self._stream = self._fixed.get("stream") is True
        self._logprobs = "logprobs" in (self._fixed.get("include") or ())
        self.output_bound = 0 if step.model.startswith("whisper") else max_output_tokens(step.model)
        name = settings.output or step.name
        self._typed = self.form in COLUMNS
        columns = [pa.field(name, COLUMNS.get(self.form, pa.string()))]
        if self._logprobs:
            if self.form != "json":
                raise JobError((*self.where, "params", "include"), "logprobs come with response_format json only")
            columns.append(pa.field(f"{step.name}_logprobs", LOGPROBS))
        self.fields = tuple(columns)

    def config_bytes(self) -> bytes:
        return step_config_bytes(self._step)

    def request(self, row: Row, key: str) -> Request | RowError:
        """The row's sound with its texts; one request a piece, too, where the sound was cut."""
        found = row_files(row, [self._file], "file")
        if isinstance(found, RowError):
            return found
        if len(found) > 1:
            return RowError("input", f"file: column {self._file} names {len(found)} files, a request takes one")
        try:
            # An empty text is no language and no hint.
            said = {name: text for name, filled in self._texts.items() if (text := filled.render(row))}
        except RenderError as exc:
            return RowError("input", str(exc))
        (sound,) = found
        try:
            whole = self._asked(sound, said, key)
            parts = tuple(self._asked(piece, said, key) for _, piece in sound.pieces)
        except TypeError as exc:
            return RowError("input", f"the row's text cannot be written as UTF-8: {exc}")
        if not parts:
            return whole
        bound = None if self.output_bound is None else self.output_bound * len(parts)
        return replace(whole, parts=parts, output_bound=bound)

    def _asked(self, sound: Media, said: Mapping[str, str], key: str) -> Request:
        body = orjson.dumps({**self._fixed, **said, "file": sound.name}, option=orjson.OPT_SORT_KEYS)
        spent = 0
        if self.output_bound != 0:
            spent = ceil((sound.seconds or 0) * TOKENS_PER_MINUTE / 60)
            spent += count_tokens(said.get("prompt", ""), self._step.model)
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, body, "" if self._step.reuse else key),
            body=body,
            input_tokens=spent,
            output_bound=self.output_bound,
            keys=(key,),
            media=(sound,),
            audio_seconds=sound.seconds,
        )

    def call(self, group: Sequence[Request]) -> Call:
        """A form with the sound in it, named by its content: the API goes by the suffix."""
        return Call("POST", self.path, form=build_form(group[0], ("file",)), stream=self._stream)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """The text, or the JSON."""
        return (stored_answer(reply, self.form),)

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """As the reply counts it; a time that it does not tell is the measured one."""
        return transcript_usage(reply, self.form, group[0].audio_seconds)

    def values(self, answer: bytes) -> Values | RowError:
        """The text, or the struct of its format."""
        spoken = transcript_struct(answer, self.form) if self._typed else transcript_text(answer, self.form)
        return (spoken, transcript_logprobs(answer)) if self._logprobs else (spoken,)

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """One array a column."""
        return [
            pa.array([None if row is None else row[place] for row in values], field.type)
            for place, field in enumerate(self.fields)
        ]

    def merge_parts(self, request: Request, answers: Sequence[bytes]) -> bytes:
        """The pieces' texts one after another, their times counted from the beginning of the whole."""
        return merge_transcripts(answers, [start for start, _ in request.media[0].pieces], self.form)
