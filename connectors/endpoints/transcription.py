"""POST /audio/transcriptions: the text of each row's audio, in the language spoken."""

from typing import Literal

from pydantic import Field

from connectors.contracts import StepContext, StepModel, TextFile
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
    "known_speaker_names": list_of("names", text.fits, max_length=4),
    "known_speaker_references": list_of("data URLs", text.fits, max_length=4),
    "chunking_strategy": ParamCheck("auto or an object", lambda value: value == "auto" or isinstance(value, dict)),
    "stream": FLAG,
}
"""From the OpenAPI description; all other parameters are keys of the step."""


class TranscriptionStep(StepModel):
    """A step of endpoint transcription (extra `rowmill[media]`)."""

    endpoint: Literal["transcription"] = Field(description="POST /audio/transcriptions.")
    file: str = Field(
        min_length=1, description="Column of paths, URLs or bytes: mp3, mp4, mpeg, mpga, m4a, wav, webm, flac or ogg."
    )
    language: str | None = Field(
        default=None,
        description="Language spoken (ISO 639-1); a template. Empty: detected by the model.",
        examples=["en"],
    )
    prompt: str | TextFile | None = Field(default=None, description="A hint about the content; a template.")
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt", "diarized_json"] | None = Field(
        default=None, description="verbose_json and diarized_json give a struct, all others a string; default json."
    )
    split: bool = Field(
        default=False, description="Split audio of more than 25 MB or 24 minutes at silences, and join the texts."
    )
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, context: StepContext) -> TranscriptEndpoint:
        """Build the endpoint; JobError for keys that do not fit."""
        return TranscriptEndpoint(
            self, context, "/audio/transcriptions", ("response_format",), PARAMS, ("language", "prompt")
        )
