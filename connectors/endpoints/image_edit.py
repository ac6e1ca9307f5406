"""POST /images/edits: edited pictures from each row's pictures and prompt."""

from typing import Annotated, Literal

from pydantic import Field

from connectors.contracts import StepContext, StepModel, TemplateText
from connectors.endpoints.images.image_endpoint import GPT_IMAGE_PARAMS, IMAGE_PARAMS, ImageEndpoint, check_model
from connectors.endpoints.images.model_families import DALL_E_2, family_of
from connectors.endpoints.params.checks import one_of
from connectors.errors import JobError

PARAMS = {**IMAGE_PARAMS, **GPT_IMAGE_PARAMS, "input_fidelity": one_of("high", "low")}

ColumnName = Annotated[str, Field(min_length=1)]


class ImageEditStep(StepModel):
    """A step of endpoint image_edit."""

    endpoint: Literal["image_edit"] = Field(description="POST /images/edits.")
    image: ColumnName | Annotated[tuple[ColumnName, ...], Field(min_length=1, max_length=16)] = Field(
        description="Column of paths, URLs or bytes, or of lists of them; gpt-image models take several columns."
    )
    mask: ColumnName | None = Field(
        default=None, description="Column of PNGs, as large as the image; their transparent area is edited."
    )
    prompt: TemplateText = Field(description="The prompt; a template.")
    n: int | None = Field(default=None, ge=1, le=10, description="Pictures for each row; more than 1 give a list.")
    size: str | None = Field(default=None, min_length=1, description="WIDTHxHEIGHT, as the model accepts it.")
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, context: StepContext) -> ImageEndpoint:
        """Build the endpoint; JobError for keys that do not fit."""
        check_model(self, ("dall-e-2", "gpt-image-1", "gpt-image-2"), "edits")
        images = [self.image] if isinstance(self.image, str) else self.image
        if len(images) > 1 and family_of(self.model) is DALL_E_2:
            raise JobError(("steps", self.name, "image"), f"{self.model} edits one picture", "name one column")
        if self.mask in images:
            raise JobError(("steps", self.name, "mask"), "is also the column of the image", "name another")
        files = {"image": images, "mask": self.mask}
        return ImageEndpoint(self, context, "/images/edits", ("n", "size"), PARAMS, prompt=self.prompt, files=files)
