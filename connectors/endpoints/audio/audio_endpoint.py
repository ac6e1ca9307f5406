"""The endpoint of transcription and translation: audio up, text down."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import orjson
import pyarrow as pa
from msgspec.structs import replace

from connectors.contracts import BaseEndpoint, MediaColumn, StepContext, StepModel
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
from connectors.media.media_packages import require_media_packages
from connectors.media.multipart import build_form, check_file_column, row_files
from connectors.records import Call, Media, Reply, Request, Row, RowError, Usage, Values
from connectors.request_fingerprint import request_fingerprint
from connectors.templating.template import RenderError
from connectors.templating.template_tree import TemplateTree
from connectors.tokens import count_tokens, max_output_tokens

MAX_UPLOAD_BYTES = 25 << 20
"""The reference, section 13.4.4."""

TOKENS_PER_MINUTE = 1_000
"""Audio tokens of models that are billed by token: their price a minute divided by their price a token."""


class TranscriptEndpoint(BaseEndpoint):
    """The endpoint of one step that turns audio into text."""

    def __init__(
        self,
        step: StepModel,
        context: StepContext,
        path: str,
        step_keys: Sequence[str],
        table: Mapping[str, ParamCheck],
        template_keys: Sequence[str],
    ) -> None:
        """`step_keys`: the step's keys that are sent unchanged; `template_keys`: those that are templates."""
        self.where = ("steps", step.name)
        self.path = path
        self._step = step
        self._tag = context.provider_tag
        settings: Any = step
        self._file = check_file_column(settings.file, context.columns, (*self.where, "file"))
        require_media_packages((*self.where, "file"))
        self._templates: dict[str, TemplateTree] = {}
        for name in template_keys:
            compiled = optional_template(getattr(step, name), context.columns, (*self.where, name))
            if compiled is not None:
                self._templates[name] = compiled
        self.input_columns = frozenset({self._file}).union(*(tree.columns for tree in self._templates.values()))
        self.media = {self._file: MediaColumn("audio", MAX_UPLOAD_BYTES, split=settings.split)}
        self._fixed = fixed_params(step, step_keys, table, self.where)
        self.response_format = str(self._fixed.get("response_format", "json"))
        if "timestamp_granularities" in self._fixed and self.response_format != "verbose_json":
            place, remedy = (*self.where, "params", "timestamp_granularities"), "add response_format: verbose_json"
            raise JobError(place, "times come with verbose_json only", remedy)
        self._stream = self._fixed.get("stream") is True
        self._has_logprobs = "logprobs" in (self._fixed.get("include") or ())
        self._sent_model = model = context.sent_model(step.model)
        self.output_bound = 0 if model.startswith("whisper") else max_output_tokens(model)
        name = settings.output or step.name
        self._is_struct = self.response_format in COLUMNS
        columns = [pa.field(name, COLUMNS.get(self.response_format, pa.string()))]
        if self._has_logprobs:
            if self.response_format != "json":
                raise JobError((*self.where, "params", "include"), "logprobs come with response_format json only")
            columns.append(pa.field(f"{step.name}_logprobs", LOGPROBS))
        self.fields = tuple(columns)

    def config_bytes(self) -> bytes:
        return step_config_bytes(self._step)

    def request(self, row: Row, key: str) -> Request | RowError:
        """Return the request of the row's audio; if the audio was split, with one request for each piece."""
        files = row_files(row, [self._file], "file")
        if isinstance(files, RowError):
            return files
        if len(files) > 1:
            return RowError("input", f"file: column {self._file} names {len(files)} files, expected one")
        try:
            # An empty text is neither a language nor a hint.
            texts = {name: text for name, tree in self._templates.items() if (text := tree.render(row))}
        except RenderError as exc:
            return RowError("input", str(exc))
        (audio,) = files
        try:
            whole = self._build_request(audio, texts, key)
            parts = tuple(self._build_request(piece, texts, key) for _, piece in audio.pieces)
        except TypeError as exc:
            return RowError("input", f"the row's text cannot be written as UTF-8: {exc}")
        if not parts:
            return whole
        bound = None if self.output_bound is None else self.output_bound * len(parts)
        return replace(whole, parts=parts, output_bound=bound)

    def _build_request(self, audio: Media, texts: Mapping[str, str], key: str) -> Request:
        body = orjson.dumps({**self._fixed, **texts, "file": audio.name}, option=orjson.OPT_SORT_KEYS)
        tokens = 0
        if self.output_bound != 0:
            tokens = ceil((audio.seconds or 0) * TOKENS_PER_MINUTE / 60)
            tokens += count_tokens(texts.get("prompt", ""), self._sent_model)
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, body, "" if self._step.reuse else key),
            body=body,
            input_tokens=tokens,
            output_bound=self.output_bound,
            keys=(key,),
            media=(audio,),
            audio_seconds=audio.seconds,
        )

    def call(self, group: Sequence[Request]) -> Call:
        """Return a form with the audio, named by its content: the API reads the suffix."""
        return Call("POST", self.path, form=build_form(group[0], ("file",)), stream=self._stream)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """Return the text, or the JSON."""
        return (stored_answer(reply, self.response_format),)

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """Return the reported usage, or the measured length if the reply has none."""
        return transcript_usage(reply, self.response_format, group[0].audio_seconds)

    def values(self, answer: bytes) -> Values | RowError:
        """Return the text, or the struct of its format."""
        transcript = (
            transcript_struct(answer, self.response_format)
            if self._is_struct
            else transcript_text(answer, self.response_format)
        )
        return (transcript, transcript_logprobs(answer)) if self._has_logprobs else (transcript,)

    def merge_parts(self, request: Request, answers: Sequence[bytes]) -> bytes:
        """Return the texts of the pieces in order, with times from the beginning of the whole."""
        return merge_transcripts(answers, [start for start, _ in request.media[0].pieces], self.response_format)
