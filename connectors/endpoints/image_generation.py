"""POST /images/generations: pictures for each row's prompt."""

from typing import Literal

from pydantic import Field

from connectors.contracts import StepContext, StepModel, TemplateText
from connectors.endpoints.images.image_endpoint import GPT_IMAGE_PARAMS, IMAGE_PARAMS, ImageEndpoint
from connectors.endpoints.params.checks import one_of

PARAMS = {
    **IMAGE_PARAMS,
    **GPT_IMAGE_PARAMS,
    "style": one_of("vivid", "natural"),
    "moderation": one_of("low", "auto"),
}


class ImageGenerationStep(StepModel):
    """A step of endpoint image_generation."""

    endpoint: Literal["image_generation"] = Field(description="POST /images/generations.")
    prompt: TemplateText = Field(description="The prompt; a template.", examples=["{{ title }}, watercolour"])
    size: str | None = Field(default=None, min_length=1, description="WIDTHxHEIGHT, as the model accepts it.")
    n: int | None = Field(default=None, ge=1, le=10, description="Pictures for each row; more than 1 give a list.")
    quality: Literal["standard", "hd", "low", "medium", "high", "auto"] | None = Field(
        default=None, description="standard or hd for dall-e-3; low, medium or high for gpt-image models."
    )
    style: Literal["vivid", "natural"] | None = Field(default=None, description="dall-e-3 only.")
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, context: StepContext) -> ImageEndpoint:
        """Build the endpoint; JobError for keys that do not fit."""
        return ImageEndpoint(
            self, context, "/images/generations", ("size", "n", "quality", "style"), PARAMS, prompt=self.prompt
        )
