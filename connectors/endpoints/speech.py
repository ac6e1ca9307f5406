"""POST /audio/speech: a text a row, a sound file for each."""

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256
from math import ceil
from typing import Annotated, Any, Literal

import orjson
import pyarrow as pa
from pydantic import Field

from connectors.contracts import MalformedReply, SingleRowEndpoint, StepContext, StepModel
from connectors.endpoints.params.checks import FLAG, number, one_of, text_up_to
from connectors.endpoints.params.step_params import fixed_params, optional_template, step_config_bytes
from connectors.media.file_types import HEAD_BYTES, OGG, detect_type
from connectors.records import Call, Reply, Request, Row, RowError, Usage, Values, request_fingerprint
from connectors.templating.template import RenderError
from connectors.tokens import count_tokens
from connectors.transport.reply_body import error_in_body, excerpt, parse_json_events, parse_object
from connectors.transport.sse import is_event_stream
from connectors.transport.token_usage import parse_count

MAX_TEXT_CHARACTERS = 4096
"""Characters of one text: the reference, section 13.4.3."""

TOKENS_PER_CHARACTER = 12
"""Of sound, at most, for models that are charged by token: half a second a character (digits are spoken as words) at
some 1,250 tokens a minute, their price a minute over their price a token."""

PARAMS = {
    "voice": text_up_to(64),
    "response_format": one_of("mp3", "opus", "aac", "flac", "wav", "pcm"),
    "speed": number(0.25, 4),
    "instructions": text_up_to(4096),
    "stream_format": one_of("sse", "audio"),
    "stream": FLAG,
}
"""The OpenAPI description; the rest are keys of the step itself."""

Voice = Annotated[str, Field(min_length=1)]


class SpeechStep(StepModel):
    """A step of endpoint speech."""

    endpoint: Literal["speech"] = Field(description="POST /audio/speech.")
    input: str = Field(
        min_length=1, description="The text, 1 to 4,096 characters; a template.", examples=["{{ body }}"]
    )
    voice: Voice | dict[Literal["id"], Voice] = Field(
        description="alloy, ash, ballad, coral, echo, fable, nova, onyx, sage, shimmer, verse, marin, cedar; or the id "
        "of one of your own.",
        examples=["alloy", {"id": "voice_1234"}],
    )
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = Field(
        default=None, description="Of the file; default mp3."
    )
    speed: float | None = Field(default=None, ge=0.25, le=4, description="1 is as usual.")
    stream: bool | None = Field(default=None, description="true: the sound is read as it is made; the same file.")
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, facts: StepContext) -> "SpeechEndpoint":
        """The endpoint; JobError, beginning with a key path, for what does not fit."""
        return SpeechEndpoint(self, facts)


class SpeechEndpoint(SingleRowEndpoint):
    """The endpoint of one step of speech."""

    path = "/audio/speech"

    def __init__(self, step: SpeechStep, facts: StepContext) -> None:
        where = ("steps", step.name)
        self._step = step
        self._tag = facts.provider_tag
        self._prefix = facts.files_prefix
        input_text = optional_template(step.input, facts.columns, (*where, "input"))
        assert input_text is not None
        self._input = input_text
        self.input_columns = input_text.columns
        own = ("voice", "response_format", "speed", "stream")
        self._fixed = fixed_params(step, own, PARAMS, where)
        # How we read it, and no parameter of the API.
        self._stream = self._fixed.pop("stream", None) is True or self._fixed.get("stream_format") == "sse"
        self._form = str(self._fixed.get("response_format", "mp3"))
        self.output_bound = self._bound(MAX_TEXT_CHARACTERS)
        self.fields = (pa.field(step.output or step.name, pa.string()),)

    def _bound(self, characters: int) -> int | None:
        model = self._step.model
        if model.startswith("tts-1"):
            return 0
        if not model.startswith("gpt-4o"):
            return None
        return ceil(characters * TOKENS_PER_CHARACTER / float(self._fixed.get("speed", 1)))

    def config_bytes(self) -> bytes:
        return step_config_bytes(self._step)

    def request(self, row: Row, key: str) -> Request | RowError:
        """The row's text with the voice."""
        try:
            said = str(self._input.render(row))
            body = orjson.dumps({**self._fixed, "input": said}, option=orjson.OPT_SORT_KEYS)
        except (RenderError, TypeError) as exc:
            return RowError("input", str(exc))
        if not said:
            return RowError("input", "input: the text is empty: there is nothing to speak")
        if len(said) > MAX_TEXT_CHARACTERS:
            return RowError(
                "input", f"input: {len(said):,} characters, more than {MAX_TEXT_CHARACTERS:,} are not taken"
            )
        bound = self._bound(len(said))
        model = self._step.model
        told = str(self._fixed.get("instructions", ""))
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, body, "" if self._step.reuse else key),
            body=body,
            input_tokens=0 if bound == 0 else count_tokens(said, model) + count_tokens(told, model),
            output_bound=bound,
            keys=(key,),
            characters=len(said),
        )

    def call(self, group: Sequence[Request]) -> Call:
        """The request as it stands."""
        return Call("POST", self.path, group[0].body, stream=self._stream)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """The sound itself."""
        body = reply.body
        if is_event_stream(body):
            body, _ = _from_events(body)
        elif "json" in reply.headers.get("content-type", "") or body[:1] == b"{":
            problem = error_in_body(reply, parse_object(body))
            if problem is not None:
                return (problem,)
            raise MalformedReply(f"JSON came in place of sound: {excerpt(body)}")
        if not body:
            raise MalformedReply("the reply is empty: no sound came")
        if self._suffix(body) is None:
            raise MalformedReply(f"the reply is no sound: {excerpt(body)}")
        return (body,)

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """The characters that were sent; tokens where a stream of events tells them."""
        used: dict[str, Any] = _from_events(reply.body)[1] if is_event_stream(reply.body) else {}
        return Usage(
            input_tokens=parse_count(used.get("input_tokens")),
            output_tokens=parse_count(used.get("output_tokens")),
            characters=group[0].characters,
        )

    def values(self, answer: bytes) -> Values | RowError:
        """The path of the file, named by its content."""
        return (f"{self._prefix}{self._file_name(answer)}",)

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """The one file."""
        return ((self._file_name(answer), answer),)

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """One column of paths."""
        return [pa.array([None if row is None else row[0] for row in values], pa.string())]

    def _file_name(self, sound: bytes) -> str:
        return f"{sha256(sound).hexdigest()[:32]}.{self._suffix(sound)}"

    def _suffix(self, sound: bytes) -> str | None:
        """By content, whatever was asked for; raw samples have none to tell them by."""
        kind = detect_type(sound[:HEAD_BYTES])
        if kind is OGG and b"OpusHead" in sound[:HEAD_BYTES]:
            return "opus"
        if self._form == "pcm" and (kind is None or kind.suffix not in ("wav", "flac")):
            return "pcm"
        return kind.suffix if kind is not None and kind.group == "audio" else None


def _from_events(body: bytes) -> tuple[bytes, dict[str, Any]]:
    """(sound, usage) of a stream of events; MalformedReply where it broke off."""
    sound = bytearray()
    for event in parse_json_events(body):
        if event.get("type") == "speech.audio.delta":
            try:
                sound += base64.b64decode(event["audio"], validate=True)
            except (KeyError, TypeError, binascii.Error, ValueError) as exc:
                raise MalformedReply(f"a piece of the sound cannot be read: {exc}") from exc
        elif event.get("type") == "speech.audio.done":
            used = event.get("usage")
            return bytes(sound), used if isinstance(used, dict) else {}
    raise MalformedReply("the stream of the sound ended before its last event")
