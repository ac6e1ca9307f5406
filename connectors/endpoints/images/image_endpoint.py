"""What the three image endpoints share: pictures come back, and become files named by content."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from connectors.contracts import MediaColumn, SingleRowEndpoint, StepContext, StepModel
from connectors.endpoints.images import image_replies
from connectors.endpoints.images.model_families import (
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
from connectors.records import Call, Media, Reply, Request, Row, RowError, Usage, Values, request_fingerprint
from connectors.templating.template import RenderError
from connectors.tokens import count_tokens

IMAGE_PARAMS: Mapping[str, ParamCheck] = {
    "n": integer(1, 10),
    "size": text,
    "response_format": one_of("url", "b64_json"),
    "user": text,
}
"""Of all three endpoints, after the OpenAPI description."""

GPT_IMAGE_PARAMS: Mapping[str, ParamCheck] = {
    "quality": one_of("standard", "hd", "low", "medium", "high", "auto"),
    "background": one_of("transparent", "opaque", "auto"),
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": integer(0, 100),
    "partial_images": integer(0, 3),
    "stream": FLAG,
}
"""Of generations and edits."""


class ImageEndpoint(SingleRowEndpoint):
    """The endpoint of one step that makes pictures."""

    def __init__(
        self,
        step: StepModel,
        context: StepContext,
        path: str,
        own: Sequence[str],
        table: Mapping[str, ParamCheck],
        prompt: str | None = None,
        files: Mapping[str, str | Sequence[str] | None] | None = None,
    ) -> None:
        """`own`: the step's keys that are sent as they stand. `files`: form field -> column or columns of pictures."""
        self.path = path
        self.where = ("steps", step.name)
        self._step = step
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
        self.fixed = fixed_params(step, own, table, self.where)
        self.family = family_of(step.model)
        check_family_params(self.fixed, self.family, self.where)
        if self.family is not None and not self.family.is_billed_by_token:
            # The pictures themselves, and not URLs that expire; other servers answer as they do.
            self.fixed.setdefault("response_format", "b64_json")
        size, quality = self.fixed.get("size"), self.fixed.get("quality")
        self.image_terms = (None if size is None else str(size), None if quality is None else str(quality))
        self._count = image_count(self.fixed)
        columns = frozenset(column for each in self._files.values() for column in each)
        self.input_columns = columns if self._prompt is None else columns | self._prompt.columns
        self.media = {
            column: MediaColumn("image", self._largest(field)) for field, each in self._files.items() for column in each
        }
        self.output_bound = output_token_bound(self.fixed, self.family)
        # dall-e-3 is the one model that tells how it rewrote the prompt.
        self._revised = path == "/images/generations" and step.model.startswith("dall-e-3")
        kind = pa.list_(pa.string()) if self._count > 1 else pa.string()
        output: str | None = getattr(step, "output", None)
        made = [pa.field(output or step.name, kind)]
        if self._revised:
            made.append(pa.field(f"{step.name}_revised_prompt", kind))
        self.fields = tuple(made)

    def _largest(self, field: str) -> int:
        """Bytes of a picture: 4 MB for masks and dall-e-2, 50 MB for all others."""
        small = self.family is not None and (field == "mask" or not self.family.is_billed_by_token)
        return (4 if small else 50) << 20

    def config_bytes(self) -> bytes:
        return step_config_bytes(self._step)

    def request(self, row: Row, key: str) -> Request | RowError:
        """The row's prompt and pictures."""
        body: dict[str, Any] = dict(self.fixed)
        tokens = 0
        if self._prompt is not None:
            try:
                said = str(self._prompt.render(row))
            except RenderError as exc:
                return RowError("input", str(exc))
            problem = prompt_problem(said, self.family)
            if problem is not None:
                return RowError("input", problem)
            body["prompt"] = said
            if self.output_bound != 0:
                tokens = count_tokens(said, self._step.model)
        found: dict[str, tuple[Media, ...]] = {}
        for field, columns in self._files.items():
            if field == "mask" and all(row[column] is None for column in columns):
                continue
            pictures = row_files(row, columns, field)
            if isinstance(pictures, RowError):
                return pictures
            found[field] = pictures
            named = [picture.name for picture in pictures]
            body[field] = named if len(named) > 1 else named[0]
        problem = picture_problem(
            found, self.family is not None, self.family is not None and self.family.is_billed_by_token
        )
        if problem is not None:
            return RowError("input", problem)
        media = tuple(picture for pictures in found.values() for picture in pictures)
        try:
            packed = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        except TypeError as exc:
            return RowError("input", f"the row's text cannot be written as UTF-8: {exc}")
        return Request(
            fingerprint=request_fingerprint(self._tag, self.path, packed, "" if self._step.reuse else key),
            body=packed,
            input_tokens=tokens + len(media) * input_image_tokens(self.fixed, self.family),
            output_bound=self.output_bound,
            keys=(key,),
            media=media,
            images=self._count,
        )

    def call(self, group: Sequence[Request]) -> Call:
        """JSON, or a form where pictures go along."""
        stream = self.fixed.get("stream") is True
        if not self._files:
            return Call("POST", self.path, group[0].body, stream=stream)
        return Call("POST", self.path, form=build_form(group[0], tuple(self._files)), stream=stream)

    def answers(self, group: Sequence[Request], reply: Reply) -> Sequence[bytes | RowError]:
        """The pictures, or where they are."""
        return (image_replies.stored_answer(reply),)

    def usage(self, group: Sequence[Request], reply: Reply) -> Usage:
        """The pictures that came, and the tokens that the reply counts."""
        return image_replies.image_usage(reply)

    def expiring_urls(self, answer: bytes) -> Sequence[str]:
        """The URLs of pictures that are not in the answer yet."""
        return image_replies.expiring_urls(answer)

    def with_contents(self, answer: bytes, contents: Sequence[bytes]) -> bytes:
        """The answer with the pictures in it; what is no picture leaves its link in place."""
        return image_replies.with_contents(answer, contents)

    def files(self, answer: bytes) -> Sequence[tuple[str, bytes]]:
        """Every picture."""
        return image_replies.files(answer)

    def values(self, answer: bytes) -> Values | RowError:
        """The paths of the files, and the prompts as the model rewrote them."""
        names = image_replies.file_names(answer)
        if isinstance(names, RowError):
            return names
        paths = [f"{self._prefix}{name}" for name in names]
        revised = image_replies.revised_prompts(answer)
        if self._count > 1:
            return (paths, revised) if self._revised else (paths,)
        return (paths[0], revised[0]) if self._revised else (paths[0],)

    def arrays(self, values: Sequence[Values | None]) -> list[pa.Array]:
        """One array a column."""
        return [
            pa.array([None if row is None else row[place] for row in values], field.type)
            for place, field in enumerate(self.fields)
        ]


def picture_problem(found: Mapping[str, Sequence[Media]], known: bool, is_billed_by_token: bool) -> str | None:
    """Why a model of a known family will not take these pictures; None where nothing speaks against them."""
    if not known or "image" not in found:
        return None
    pictures = found["image"]
    most = 16 if is_billed_by_token else 1
    if len(pictures) > most:
        return f"image: {len(pictures)} pictures, at most {most} are taken"
    for picture in pictures:
        if is_billed_by_token and picture.suffix not in ("png", "webp", "jpg"):
            return f"image: a {picture.suffix} picture; png, webp and jpeg are taken"
        if not is_billed_by_token and picture.suffix != "png":
            return f"image: a {picture.suffix} picture; a square png is taken"
        if not is_billed_by_token and picture.pixels is not None and picture.pixels[0] != picture.pixels[1]:
            return f"image: {_shown(picture)} pixels; a square png is taken"
    masks = found.get("mask", ())
    if len(masks) > 1:
        return f"mask: {len(masks)} pictures, one is taken"
    for mask in masks:
        if mask.suffix != "png":
            return f"mask: a {mask.suffix} picture; a png is taken"
        if mask.pixels != pictures[0].pixels:
            return f"mask: {_shown(mask)} pixels, but the image has {_shown(pictures[0])}; they must be the same"
    return None


def _shown(picture: Media) -> str:
    return "unknown" if picture.pixels is None else f"{picture.pixels[0]}x{picture.pixels[1]}"


def check_model(step: StepModel, family_names: Sequence[str], what: str) -> None:
    """JobError where the model is known, and known not to do this."""
    family = family_of(step.model)
    if family is not None and family.name not in family_names:
        raise JobError(
            ("steps", step.name, "model"), f"{step.model} makes no {what}", f"take {' or '.join(family_names)}"
        )
