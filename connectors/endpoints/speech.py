"""POST /audio/speech: an audio file for each row's text."""

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256
from math import ceil
from typing import Annotated, Any, Literal

import orjson
import pyarrow as pa
from msgspec.structs import replace
from pydantic import Field

from connectors.contracts import BaseEndpoint, MalformedReply, StepContext, StepModel, TemplateText
from connectors.endpoints.params.checks import FLAG, number, one_of, text_up_to
from connectors.endpoints.params.step_params import fixed_params, optional_template, step_config_bytes
from connectors.media.file_types import HEAD_BYTES, OGG, detect_type
from connectors.records import Call, Reply, Request, Row, RowError, Usage, Values
from connectors.request_fingerprint import request_fingerprint
from connectors.templating.template import RenderError
from connectors.tokens import count_tokens
from connectors.transport.reply_body import error_in_body, excerpt, parse_json_events, parse_object
from connectors.transport.sse import is_event_stream
from connectors.transport.token_usage import token_usage

MAX_TEXT_CHARACTERS = 4096
"""The reference, section 13.4.3."""

MAX_TOKENS_PER_CHARACTER = 12
"""Audio tokens of models that are billed by token: half a second for a character (digits are spoken as words), at some
1,250 tokens a minute, which is their price a minute divided by their price a token."""

PARAMS = {
    "voice": text_up_to(64),
    "response_format": one_of("mp3", "opus", "aac", "flac", "wav", "pcm"),
    "speed": number(0.25, 4),
    "instructions": text_up_to(4096),
    "stream_format": one_of("sse", "audio"),
    "stream": FLAG,
}
"""From the OpenAPI description; all other parameters are keys of the step."""

Voice = Annotated[str, Field(min_length=1)]


class SpeechStep(StepModel):
    """A step of endpoint speech."""

    endpoint: Literal["speech"] = Field(description="POST /audio/speech.")
    input: TemplateText = Field(description="The text, 1 to 4,096 characters; a template.", examples=["{{ body }}"])
    voice: Voice | dict[Literal["id"], Voice] = Field(
        description="alloy, ash, ballad, coral, echo, fable, nova, onyx, sage, shimmer, verse, marin, cedar; or the id "
        "of a custom voice.",
        examples=["alloy", {"id": "voice_1234"}],
    )
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = Field(
        default=None, description="Format of the file; default mp3."
    )
    speed: float | None = Field(default=None, ge=0.25, le=4, description="1 is normal speed.")
    stream: bool | None = Field(default=None, description="true: request the audio as a stream; the file is the same.")
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, context: StepContext) -> "SpeechEndpoint":
        """Build the endpoint; JobError for keys that do not fit."""
        return SpeechEndpoint(self, context)


class SpeechEndpoint(BaseEndpoint):
    """The endpoint of one step of speech."""

    path = "/audio/speech"

    def __init__(self, step: SpeechStep, context: StepContext) -> None:
        where = ("steps", step.name)
        self._step = step
        self._tag = context.provider_tag
        self._prefix = context.files_prefix
        input_text = optional_template(step.input, context.columns, (*where, "input"))
        assert input_text is not None
        self._input = input_text
        self.input_columns = input_text.columns
        self._sent_model = context.sent_model(step.model)
        self._fixed = fixed_params(step, ("voice", "response_format", "speed", "stream"), PARAMS, where)
        # `stream` is Rowmill's key, not a parameter of the API.
        self._stream = self._fixed.pop("stream", None) is True or self._fixed.get("stream_format") == "sse"
        self._format = str(self._fixed.get("response_format", "mp3"))
        self.output_bound = self._output_bound(MAX_TEXT_CHARACTERS)
        self.fields = (pa.field(step.output or step.name, pa.string()),)

    def _output_bound(self, characters: int) -> int | None:
        model = self._sent_model
        if model.startswith("tts-1"):
            return 0
        if not model.startswith("gpt-4o"):
            return None
        return ceil(characters * MAX_TOKENS_PER_CHARACTER / float(self._fixed.get("speed", 1)))

    def config_bytes(self) -> bytes:
        return step_config_bytes(self._step)

    def request(self, row: Row, key: str) -> Request | RowError:
        """Return the request of the row's text."""
        try:
            text = str(self._input.render(row))
            body = orjson.dumps({**self._fixed, "input": text}, option=orjson.OPT_SORT_KEYS)
        except (RenderError, TypeError) as exc:
            return RowError("input", str(exc))
        if not text:
            return RowError("input", "input: the text is empty; there is nothing to speak")
        if len(text) > MAX_TEXT_CHARACTERS:
            return RowError(
                "input", f"input: {len(text):,} characters, more than the maximum of {MAX_TEXT_CHARACTERS:,}"
            )
        bound = self._output_bound(len(text))
        model = self._sent_model
        instructions = str(self._fixed.get("instructions", ""))
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, body, "" if self._step.reuse else key),
            body=body,
            input_tokens=0 if bound == 0 else count_tokens(text, model) + count_tokens(instructions, model),
            output_bound=bound,
            keys=(key,),
            characters=len(text),
        )

    def call(self, group: Sequence[Request]) -> Call:
        """Return the request unchanged."""
        return Call("POST", self.path, group[0].body, stream=self._stream)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """Return the audio itself."""
        body = reply.body
        if self._has_events(reply):
            body, _ = _from_events(body)
        elif self._is_json(reply):
            problem = error_in_body(reply, parse_object(body))
            if problem is not None:
                return (problem,)
            raise MalformedReply(f"the reply is JSON, not audio: {excerpt(body)}")
        if not body:
            raise MalformedReply("the reply is empty; it has no audio")
        if self._suffix(body) is None:
            raise MalformedReply(f"the reply is not audio: {excerpt(body)}")
        return (body,)

    def _has_events(self, reply: Reply) -> bool:
        """Return whether a body is a stream of events; raw samples, too, may begin with the byte of a colon."""
        may_be_samples = self._format == "pcm" and "event-stream" not in reply.headers.get("content-type", "")
        return is_event_stream(reply.body) and not (may_be_samples and reply.body[:1] == b":")

    def _is_json(self, reply: Reply) -> bool:
        """Return whether a body is JSON; raw samples, too, may begin with the byte of a brace."""
        if "json" in reply.headers.get("content-type", ""):
            return True
        if reply.body[:1] != b"{" or self._format != "pcm":
            return reply.body[:1] == b"{"
        try:
            parse_object(reply.body)
        except MalformedReply:
            return False
        return True

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """Return the characters sent, and the tokens if a stream of events has them."""
        counts: dict[str, Any] = _from_events(reply.body)[1] if self._has_events(reply) else {}
        return replace(token_usage({"usage": counts}, None), characters=group[0].characters)

    def values(self, answer: bytes) -> Values | RowError:
        """Return the path of the file, which is named by its content."""
        return (f"{self._prefix}{self._file_name(answer)}",)

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """Return the one file."""
        return ((self._file_name(answer), answer),)

    def _file_name(self, audio: bytes) -> str:
        return f"{sha256(audio).hexdigest()[:32]}.{self._suffix(audio)}"

    def _suffix(self, audio: bytes) -> str | None:
        """Return the suffix by content, whatever was requested; raw samples have no recognisable content."""
        kind = detect_type(audio[:HEAD_BYTES])
        if kind is OGG and b"OpusHead" in audio[:HEAD_BYTES]:
            return "opus"
        if self._format == "pcm" and (kind is None or kind.suffix not in ("wav", "flac")):
            return "pcm"
        return kind.suffix if kind is not None and kind.group == "audio" else None


def _from_events(body: bytes) -> tuple[bytes, dict[str, Any]]:
    """Return (audio, usage) of a stream of events; MalformedReply if it ends early."""
    audio = bytearray()
    for event in parse_json_events(body):
        if event.get("type") == "speech.audio.delta":
            try:
                audio += base64.b64decode(event["audio"], validate=True)
            except (KeyError, TypeError, binascii.Error, ValueError) as exc:
                raise MalformedReply(f"a piece of the audio cannot be decoded: {exc}") from exc
        elif event.get("type") == "speech.audio.done":
            counts = event.get("usage")
            return bytes(audio), counts if isinstance(counts, dict) else {}
    raise MalformedReply("the stream of the audio ended before its last event")
