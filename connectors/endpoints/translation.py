"""POST /audio/translations: the text of each row's audio, in English."""

from typing import Literal

from pydantic import Field

from connectors.contracts import StepContext, StepModel, TextFile
from connectors.endpoints.audio.audio_endpoint import TranscriptEndpoint
from connectors.endpoints.params.checks import number, one_of

PARAMS = {
    "response_format": one_of("json", "text", "srt", "verbose_json", "vtt"),
    "temperature": number(0, 1),
}
"""The reference, section 6.3; all other parameters are keys of the step."""


class TranslationStep(StepModel):
    """A step of endpoint translation (extra `rowmill[media]`)."""

    endpoint: Literal["translation"] = Field(description="POST /audio/translations.")
    file: str = Field(
        min_length=1, description="Column of paths, URLs or bytes: mp3, mp4, mpeg, mpga, m4a, wav, webm, flac or ogg."
    )
    prompt: str | TextFile | None = Field(default=None, description="A hint about the content, in English; a template.")
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] | None = Field(
        default=None, description="verbose_json gives a struct, all others a string; default json."
    )
    split: bool = Field(
        default=False, description="Split audio of more than 25 MB or 24 minutes at silences, and join the texts."
    )
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, context: StepContext) -> TranscriptEndpoint:
        """Build the endpoint; JobError for keys that do not fit."""
        return TranscriptEndpoint(self, context, "/audio/translations", ("response_format",), PARAMS, ("prompt",))
