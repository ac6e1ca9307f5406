"""A pydantic class as a typed output: what each annotation becomes, and what no column can hold."""

import enum
from typing import Annotated, Any, Literal

import pyarrow as pa
import pytest
from pydantic import BaseModel, Field

from connectors.endpoints.conversation.structured.class_output import output_of_class
from connectors.endpoints.conversation.structured.structured_output import TypedOutput
from connectors.errors import FieldError


class Topic(enum.Enum):
    BILLING = "billing"
    BUG = "bug"


class Person(BaseModel):
    name: str
    age: int | None = None


class Ticket(BaseModel):
    topic: Topic
    mood: Literal["calm", "angry"] | None
    only: Literal["yes"]
    urgency: Annotated[int, Field(ge=1, le=5, description="5 is the most urgent.")]
    share: float = Field(gt=0, lt=1)
    code: str = Field(default="A1", pattern="^[A-Z][0-9]$", max_length=2)
    tags: list[str] = Field(max_length=3)
    people: list[Person]
    owner: Person | None
    is_open: bool


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "nullable": True}},
}


def test_each_field_is_a_column_with_its_type_and_bounds() -> None:
    assert output_of_class(Ticket) == {
        "topic": {"enum": ["billing", "bug"], "type": "string"},
        "mood": {"enum": ["calm", "angry"], "type": "string", "nullable": True},
        "only": {"const": "yes", "type": "string"},
        "urgency": {"type": "integer", "minimum": 1, "maximum": 5, "description": "5 is the most urgent."},
        "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "code": {"type": "string", "pattern": "^[A-Z][0-9]$", "maxLength": 2},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "people": {"type": "array", "items": PERSON},
        "owner": {**PERSON, "nullable": True},
        "is_open": {"type": "boolean"},
    }


def test_the_columns_have_the_types_of_tables() -> None:
    person = pa.struct([("name", pa.string()), ("age", pa.int64())])
    found = TypedOutput(output_of_class(Ticket), ("output",)).fields
    assert [(field.name, field.type) for field in found] == [
        ("topic", pa.string()),
        ("mood", pa.string()),
        ("only", pa.string()),
        ("urgency", pa.int64()),
        ("share", pa.float64()),
        ("code", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("people", pa.list_(person)),
        ("owner", person),
        ("is_open", pa.bool_()),
    ]


class Tree(BaseModel):
    children: "list[Tree]"


class Empty(BaseModel):
    pass


def a_class(annotation: Any) -> type[BaseModel]:
    return type("Answer", (BaseModel,), {"__annotations__": {"value": annotation}})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (a_class(int | str), "Answer.value has several types"),
        (a_class(Any), "Answer.value has no single type"),
        (a_class(Literal["a", 1]), "Answer.value has no single type"),
        (a_class(tuple[int, str]), "Answer.value has no single type"),
        (a_class(dict[str, int]), "Answer.value has no fixed fields"),
        (a_class(list[dict[str, int]]), "Answer.value.items has no fixed fields"),
        (a_class(list[Any]), "Answer.value.items has no single type"),
        (a_class(None), "Answer.value has no single type"),
        (Tree, "Tree.children.items contains itself"),
        (Empty, "Empty has no fields"),
    ],
)
def test_an_annotation_without_a_column_type_is_refused(model: type[BaseModel], message: str) -> None:
    with pytest.raises(FieldError) as caught:
        output_of_class(model)
    assert caught.value.found == message
    assert "\n" not in str(caught.value)


def test_a_type_without_a_schema_is_refused_in_one_line() -> None:
    class Odd:
        pass

    model = type(
        "Answer",
        (BaseModel,),
        {"__annotations__": {"value": Odd}, "model_config": {"arbitrary_types_allowed": True}},
    )
    with pytest.raises(FieldError, match=r"^Answer: .*; use str, int, float, bool") as caught:
        output_of_class(model)
    assert "\n" not in str(caught.value)
