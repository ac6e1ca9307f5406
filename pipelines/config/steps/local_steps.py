"""The models of local steps: what a job does to its rows without a request."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import ByteSize, Field, WithJsonSchema, field_validator, model_validator

from connectors.contracts import FrozenModel
from connectors.errors import FieldError

Expressions = Annotated[dict[str, Annotated[str, Field(min_length=1)]], Field(min_length=1)]
"""Output -> SQL."""
MIN_PIECE_TOKENS = 4
"""Of one character."""


class LocalStep(FrozenModel):
    """The keys of every local step."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", description="Unique in the job.")
    keep: bool = Field(
        default=True, description="false: later steps see its outputs, but the results table does not have them."
    )

    @property
    def config_bytes(self) -> bytes:
        """Canonical bytes of all that can change its outputs, for the row fingerprint."""
        return orjson.dumps(self.model_dump(mode="json", exclude={"keep"}), option=orjson.OPT_SORT_KEYS)


class SelectStep(LocalStep):
    """Outputs that are computed by SQL from the row so far."""

    select: Expressions = Field(
        description="Output -> SQL expression over the row so far.",
        examples=[{"long": "length(body) > 1000"}],
    )
    when: str | None = Field(
        default=None, min_length=1, description="SQL predicate over the row so far; outputs are null unless true."
    )


class _UnconditionalStep(LocalStep):
    """A local step that applies to all rows."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_when(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "when" in values:
            remedy = "use `where` of the source, or leave the list or the text of other rows empty by a select: step"
            raise FieldError("such a step applies to all rows", remedy, ("when",))
        return values


class PieceOptions(FrozenModel):
    """How a text is cut into pieces."""

    split: str = Field(min_length=1, description="The column with the text.", examples=["body"])
    tokens: int = Field(ge=MIN_PIECE_TOKENS, description="The most tokens of a piece.", examples=[400])
    overlap: int = Field(default=0, ge=0, description="Tokens of the previous piece that are repeated, in whole words.")
    model: str = Field(default="gpt-4o", min_length=1, description="The model whose tokenizer counts.")

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.overlap >= self.tokens:
            raise FieldError(f"found {self.overlap}, as many tokens as a piece", "write fewer", ("overlap",))
        return self


class ElementOptions(FrozenModel):
    """Where the elements come from."""

    list: str = Field(min_length=1, description="SQL expression of a list over the row so far.", examples=["tags"])


class EachStep(_UnconditionalStep):
    """One row becomes many: the pieces of a text, or the elements of a list."""

    @field_validator("each", mode="before")
    @classmethod
    def _refuse_both(cls, options: Any) -> Any:
        if isinstance(options, Mapping) and {"split", "list"} <= options.keys():
            raise FieldError("a second kind of each next to split", "keep one of them, or write two steps", ("list",))
        return options

    each: PieceOptions | ElementOptions = Field(
        description="`split` or `list`. Adds `<name>` and `<name>_index`, for pieces `<name>_start` and `<name>_end`.",
        examples=[{"split": "body", "tokens": 400, "overlap": 40}],
    )


class ReadStep(LocalStep):
    """The text of a document that each row names: PDF, DOCX, PPTX, XLSX, HTML, Markdown or text (extra
    `rowmill[documents]`)."""

    read: str = Field(
        min_length=1,
        description="The column of paths, URLs or bytes. Adds `<name>`, its text, and `<name>_media_type`.",
        examples=["file"],
    )
    pages: Literal["text", "images"] | None = Field(
        default=None, description="Adds `<name>_pages`: the text of each page, or of a PDF a picture of each page."
    )
    largest: Annotated[ByteSize, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]})] = Field(
        default=ByteSize(100_000_000),
        gt=0,
        description="A larger file is an error of its row.",
        examples=["250MB"],
        json_schema_extra={"default": "100MB"},
    )
    when: str | None = Field(
        default=None, min_length=1, description="SQL predicate over the row so far; outputs are null unless true."
    )

    @property
    def config_bytes(self) -> bytes:
        """See LocalStep; a larger limit changes no text."""
        return orjson.dumps(self.model_dump(mode="json", exclude={"keep", "largest"}), option=orjson.OPT_SORT_KEYS)


class FoldStep(_UnconditionalStep):
    """The rows that an `each` step has made of one row become one again."""

    fold: Expressions = Field(
        description="Output -> SQL aggregate over the children of one source row.",
        examples=[{"facts": "list(fact order by chunk_index)", "chunks": "count(*)"}],
    )


LOCAL_STEPS: Mapping[str, type[LocalStep]] = {
    "select": SelectStep,
    "read": ReadStep,
    "each": EachStep,
    "fold": FoldStep,
}
"""By the key that names the kind."""


def check_order(steps: "Mapping[int, LocalStep]") -> None:
    """Raise FieldError if an `each` begins within another, or a `fold` without one. `steps`: by place in the job."""
    opened: LocalStep | None = None
    for place, step in steps.items():
        if isinstance(step, EachStep):
            if opened is not None:
                found = f"{opened.name} has made several rows of one already"
                raise FieldError(found, "fold them first, or use two jobs", ("steps", place, "each"))
            opened = step
        elif isinstance(step, FoldStep):
            if opened is None:
                raise FieldError("there is no each: step to fold", "write one before it", ("steps", place, "fold"))
            opened = None
