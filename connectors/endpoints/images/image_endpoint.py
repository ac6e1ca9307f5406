"""The endpoint of image generation, edits and variations: pictures become files named by content."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from connectors.contracts import BaseEndpoint, MediaColumn, StepContext, StepModel, TextFile
from connectors.endpoints.images import image_replies
from connectors.endpoints.images.model_families import (
    ModelFamily,
    check_family_params,
    family_of,
    image_count,
    input_image_tokens,
    output_token_bound,
    prompt_problem,
)
from connectors.endpoints.params.checks import FLAG, ParamCheck, integer, one_of, text
from connectors.endpoints.params.step_params import fixed_params, optional_template, step_config_bytes
from connectors.errors import JobError
from connectors.media.multipart import build_form, check_file_column, row_files
from connectors.records import Call, Media, Reply, Request, Row, RowError, Usage, Values
from connectors.request_fingerprint import request_fingerprint
from connectors.templating.template import RenderError
from connectors.tokens import count_tokens

IMAGE_PARAMS: Mapping[str, ParamCheck] = {
    "n": integer(1, 10),
    "size": text,
    "response_format": one_of("url", "b64_json"),
    "user": text,
}
"""Of all three endpoints, from the OpenAPI description."""

GPT_IMAGE_PARAMS: Mapping[str, ParamCheck] = {
    "quality": one_of("standard", "hd", "low", "medium", "high", "auto"),
    "background": one_of("transparent", "opaque", "auto"),
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": integer(0, 100),
    "partial_images": integer(0, 3),
    "stream": FLAG,
}
"""Of generations and edits."""


class ImageEndpoint(BaseEndpoint):
    """The endpoint of one step that makes pictures."""

    def __init__(
        self,
        step: StepModel,
        context: StepContext,
        path: str,
        step_keys: Sequence[str],
        table: Mapping[str, ParamCheck],
        prompt: str | TextFile | None = None,
        files: Mapping[str, str | Sequence[str] | None] | None = None,
    ) -> None:
        """`step_keys`: the step's keys that are sent unchanged. `files`: form field -> its columns of pictures."""
        self.path = path
        self.where = ("steps", step.name)
        self._step = step
        self._sent_model = context.sent_model(step.model)
        self._tag = context.provider_tag
        self._prefix = context.files_prefix
        self._prompt = optional_template(prompt, context.columns, (*self.where, "prompt"))
        self._files = {
            field: tuple(
                check_file_column(column, context.columns, (*self.where, field))
                for column in ([columns] if isinstance(columns, str) else columns)
            )
            for field, columns in (files or {}).items()
            if columns
        }
        self.fixed = fixed_params(step, step_keys, table, self.where)
        self.family = family_of(step.model)
        check_family_params(self.fixed, self.family, self.where)
        if self.family is not None and not self.family.is_billed_by_token:
            # Request the pictures themselves, not URLs that expire; servers of other models decide for themselves.
            self.fixed.setdefault("response_format", "b64_json")
        size, quality = self.fixed.get("size"), self.fixed.get("quality")
        self.image_terms = (None if size is None else str(size), None if quality is None else str(quality))
        self._count = image_count(self.fixed)
        columns = frozenset(column for each in self._files.values() for column in each)
        self.input_columns = columns if self._prompt is None else columns | self._prompt.columns
        self.media = {
            column: MediaColumn("image", self._max_bytes(field))
            for field, each in self._files.items()
            for column in each
        }
        self.output_bound = output_token_bound(self.fixed, self.family)
        # Only dall-e-3 returns the prompt as it rewrote it.
        self._has_revised_prompt = path == "/images/generations" and step.model.startswith("dall-e-3")
        kind = pa.list_(pa.string()) if self._count > 1 else pa.string()
        output: str | None = getattr(step, "output", None)
        fields = [pa.field(output or step.name, kind)]
        if self._has_revised_prompt:
            fields.append(pa.field(f"{step.name}_revised_prompt", kind))
        self.fields = tuple(fields)

    def _max_bytes(self, field: str) -> int:
        """Return the maximum size of a picture: 4 MB for masks and dall-e-2, 50 MB for all others."""
        is_small = self.family is not None and (field == "mask" or not self.family.is_billed_by_token)
        return (4 if is_small else 50) << 20

    def config_bytes(self) -> bytes:
        return step_config_bytes(self._step)

    def request(self, row: Row, key: str) -> Request | RowError:
        """Return the request of the row's prompt and pictures."""
        body: dict[str, Any] = dict(self.fixed)
        tokens = 0
        if self._prompt is not None:
            try:
                prompt = str(self._prompt.render(row))
            except RenderError as exc:
                return RowError("input", str(exc))
            problem = prompt_problem(prompt, self.family)
            if problem is not None:
                return RowError("input", problem)
            body["prompt"] = prompt
            if self.output_bound != 0:
                tokens = count_tokens(prompt, self._sent_model)
        pictures_by_field: dict[str, tuple[Media, ...]] = {}
        for field, columns in self._files.items():
            if field == "mask" and all(row[column] is None for column in columns):
                continue
            pictures = row_files(row, columns, field)
            if isinstance(pictures, RowError):
                return pictures
            pictures_by_field[field] = pictures
            names = [picture.name for picture in pictures]
            body[field] = names if len(names) > 1 else names[0]
        problem = picture_problem(pictures_by_field, self.family)
        if problem is not None:
            return RowError("input", problem)
        media = tuple(picture for pictures in pictures_by_field.values() for picture in pictures)
        try:
            raw_body = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        except TypeError as exc:
            return RowError("input", f"the row's text cannot be written as UTF-8: {exc}")
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, raw_body, "" if self._step.reuse else key),
            body=raw_body,
            input_tokens=tokens + len(media) * input_image_tokens(self.fixed, self.family),
            output_bound=self.output_bound,
            keys=(key,),
            media=media,
            images=self._count,
        )

    def call(self, group: Sequence[Request]) -> Call:
        """Return JSON, or a form if the request has pictures."""
        stream = self.fixed.get("stream") is True
        if not self._files:
            return Call("POST", self.path, group[0].body, stream=stream)
        return Call("POST", self.path, form=build_form(group[0], tuple(self._files)), stream=stream)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """Return the pictures, or their URLs."""
        return (image_replies.stored_answer(reply),)

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """Return the number of pictures, and the tokens that the reply reports."""
        return image_replies.image_usage(reply)

    def expiring_urls(self, answer: bytes) -> Sequence[str]:
        """Return the URLs of pictures that are not yet in the answer."""
        return image_replies.expiring_urls(answer)

    def with_contents(self, answer: bytes, contents: Sequence[bytes]) -> bytes:
        """Return the answer with the pictures in it; a content that is not a picture leaves its URL in place."""
        return image_replies.with_contents(answer, contents)

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """Return every picture."""
        return image_replies.files(answer)

    def values(self, answer: bytes) -> Values | RowError:
        """Return the paths of the files, and the prompts as the model rewrote them."""
        values = self.committed_values(answer)
        if isinstance(values, RowError) or self._count == 1 or len(values[0]) >= self._count:
            return values
        message = f"the server sent {len(values[0])} of {self._count} pictures; it does not support n; leave n out"
        return RowError("invalid_answer", message)

    def committed_values(self, answer: bytes) -> Values | RowError:
        """Return the same; earlier releases also took fewer pictures than `n`."""
        names = image_replies.file_names(answer)
        if isinstance(names, RowError):
            return names
        paths = [f"{self._prefix}{name}" for name in names]
        prompts = image_replies.revised_prompts(answer)
        if self._count > 1:
            return (paths, prompts) if self._has_revised_prompt else (paths,)
        return (paths[0], prompts[0]) if self._has_revised_prompt else (paths[0],)


def picture_problem(pictures_by_field: Mapping[str, Sequence[Media]], family: ModelFamily | None) -> str | None:
    """Return why a model of a known family would refuse these pictures; None if it accepts them."""
    if family is None or "image" not in pictures_by_field:
        return None
    pictures = pictures_by_field["image"]
    max_pictures = 16 if family.is_billed_by_token else 1
    if len(pictures) > max_pictures:
        return f"image: {len(pictures)} pictures, expected at most {max_pictures}"
    for picture in pictures:
        if family.is_billed_by_token and picture.suffix not in ("png", "webp", "jpg"):
            return f"image: a {picture.suffix} picture, expected png, webp or jpeg"
        if not family.is_billed_by_token and picture.suffix != "png":
            return f"image: a {picture.suffix} picture, expected a square png"
        if not family.is_billed_by_token and picture.pixels is not None and picture.pixels[0] != picture.pixels[1]:
            return f"image: {_pixel_size(picture)} pixels, expected a square png"
    masks = pictures_by_field.get("mask", ())
    if len(masks) > 1:
        return f"mask: {len(masks)} pictures, expected one"
    for mask in masks:
        if mask.suffix != "png":
            return f"mask: a {mask.suffix} picture, expected a png"
        if mask.pixels != pictures[0].pixels:
            return (
                f"mask: {_pixel_size(mask)} pixels, but the image has {_pixel_size(pictures[0])}; they must be the same"
            )
    return None


def _pixel_size(picture: Media) -> str:
    return "unknown" if picture.pixels is None else f"{picture.pixels[0]}x{picture.pixels[1]}"


def check_model(step: StepModel, family_names: Sequence[str], product: str) -> None:
    """Raise JobError if the model is known not to support this endpoint."""
    family = family_of(step.model)
    if family is not None and family.name not in family_names:
        raise JobError(
            ("steps", step.name, "model"), f"{step.model} makes no {product}", f"take {' or '.join(family_names)}"
        )
