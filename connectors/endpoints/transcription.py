"""POST /audio/transcriptions: a sound a row, its words in the language spoken."""

from typing import Literal

from pydantic import Field

from connectors.contracts import StepContext, StepModel
from connectors.endpoints.audio.audio_endpoint import TranscriptEndpoint
from connectors.endpoints.params.checks import FLAG, ParamCheck, list_of, number, one_of, text

FORMATS = ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")

PARAMS = {
    "response_format": one_of(*FORMATS),
    "temperature": number(0, 1),
    "timestamp_granularities": list_of("word or segment", one_of("word", "segment").fits),
    "include": list_of("logprobs", lambda value: value == "logprobs"),
    "languages": list_of("languages", text.fits),
    "keywords": list_of("words", text.fits),
    "known_speaker_names": list_of("names", text.fits, most=4),
    "known_speaker_references": list_of("data URLs", text.fits, most=4),
    "chunking_strategy": ParamCheck("auto or an object", lambda value: value == "auto" or isinstance(value, dict)),
    "stream": FLAG,
}
"""The OpenAPI description; the rest are keys of the step itself."""


class TranscriptionStep(StepModel):
    """A step of endpoint transcription."""

    endpoint: Literal["transcription"] = Field(description="POST /audio/transcriptions.")
    file: str = Field(
        min_length=1, description="Column of paths, URLs or bytes: mp3, mp4, mpeg, mpga, m4a, wav, webm, flac or ogg."
    )
    language: str | None = Field(
        default=None, description="Language spoken (ISO 639-1); a template. Empty: to be found out.", examples=["en"]
    )
    prompt: str | None = Field(default=None, description="What the words may be about; a template.")
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"] | None = Field(
        default=None, description="verbose_json and diarized_json give a struct, all others a string; default json."
    )
    split: bool = Field(
        default=False, description="Cut sound of more than 25 MB or 24 minutes at silences, and join the texts."
    )
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, facts: StepContext) -> TranscriptEndpoint:
        """The endpoint; JobError, beginning with a key path, for what does not fit."""
        return TranscriptEndpoint(
            self, facts, "/audio/transcriptions", ("response_format",), PARAMS, ("language", "prompt")
        )
