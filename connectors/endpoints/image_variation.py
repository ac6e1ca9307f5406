"""POST /images/variations: variations of each row's picture."""

from typing import Literal

from pydantic import Field

from connectors.contracts import StepContext, StepModel
from connectors.endpoints.images.image_endpoint import IMAGE_PARAMS, ImageEndpoint, check_model


class ImageVariationStep(StepModel):
    """A step of endpoint image_variation."""

    endpoint: Literal["image_variation"] = Field(description="POST /images/variations.")
    image: str = Field(min_length=1, description="Column of paths, URLs or bytes of square PNGs of less than 4 MB.")
    n: int | None = Field(default=None, ge=1, le=10, description="Pictures for each row; more than 1 give a list.")
    size: str | None = Field(default=None, min_length=1, description="256x256, 512x512 or 1024x1024.")
    output: str | None = Field(default=None, description="The column's name; default: the step's.")

    def build(self, context: StepContext) -> ImageEndpoint:
        """Build the endpoint; JobError for keys that do not fit."""
        check_model(self, ("dall-e-2",), "variations")
        return ImageEndpoint(
            self, context, "/images/variations", ("n", "size"), IMAGE_PARAMS, files={"image": self.image}
        )
