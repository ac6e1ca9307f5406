"""The dialogue of a step: turns that the job file writes, every text a template, or a whole dialogue from a column."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from connectors.contracts import FrozenModel, MediaColumn
from connectors.endpoints.conversation.history_column import (
    FURTHER_KEYS,
    KEYS,
    ROLES,
    SHORT_ROLES,
    can_hold_conversation,
    parse_conversation,
)
from connectors.endpoints.conversation.tool_calls import normalize_tool_call
from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.records import Media, Row
from connectors.templating.template import RenderError
from connectors.templating.template_tree import (
    TemplateTree,
    compile_template,
    compile_text,
    list_template,
    literal,
    mapping_template,
)

LARGEST_PICTURE = 20 << 20
"""Bytes; section 13.4.2 of the reference."""

PICTURE_KINDS = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
"""The same section."""

DETAILS = ("low", "high", "auto")


class ColumnReference(FrozenModel):
    """A whole dialogue, taken from a column."""

    column: str = Field(min_length=1, description="A column of list of struct, or JSON text.", examples=["history"])


Turns = str | Sequence[Mapping[str, Any]] | ColumnReference
"""A text is one turn of the user."""


class Conversation:
    """What a step says to the model, in chat completions' own shape."""

    def __init__(self, turns: Turns, columns: Mapping[str, pa.DataType], where: KeyPath, items: bool = False) -> None:
        """JobError, placed below `where`, for what is none over these columns. `items`: the input items of responses
        (with a `type`) may stand among the turns; they pass as they are."""
        self.media: Mapping[str, MediaColumn] = {}
        """The columns of pictures."""
        self.texts: frozenset[str]
        """The columns that its texts name."""
        if isinstance(turns, ColumnReference):
            name = turns.column
            if name not in columns:
                raise JobError((*where, "column"), f"no column {name} here", f"{did_you_mean(name, columns)}")
            if not can_hold_conversation(columns[name]):
                raise JobError(
                    (*where, "column"), f"{name} is {columns[name]}", "a dialogue is a list of struct, or its JSON text"
                )
            self.texts = frozenset({name})
            self._fill: Callable[[Row], list[dict[str, Any]]] = lambda row: parse_conversation(row[name], name, items)
            return
        reader = _Turns(frozenset(columns), items)
        if isinstance(turns, str):
            alone = {"role": literal("user"), "content": compile_text(turns, columns, where)}
            whole = list_template([mapping_template(alone)])
        else:
            whole = list_template([reader.turn(turn, (*where, place)) for place, turn in enumerate(turns)])
        self.texts = whole.columns
        self.media = dict.fromkeys(sorted(reader.pictures), MediaColumn("image", LARGEST_PICTURE, passes_urls=True))
        self._fill = whole.render

    def rendered(self, row: Row) -> tuple[list[dict[str, Any]], tuple[Media, ...]]:
        """The turns with the row's values in them, and the pictures that they name; TemplateProblem where the row
        makes none."""
        messages = self._fill(row)
        return (messages, _named(messages)) if self.media else (messages, ())


def _named(messages: Iterable[Mapping[str, Any]]) -> tuple[Media, ...]:
    """Puts names in place of pictures."""
    found: dict[str, Media] = {}
    for message in messages:
        content = message.get("content")
        if not isinstance(content, list):
            continue
        if not content:
            raise RenderError("a message has no content: its picture is null, and there is no text beside it")
        for part in content:
            image = part.get("image_url")
            if isinstance(image, dict) and isinstance(picture := image.get("url"), Media):
                if picture.kind not in PICTURE_KINDS:
                    raise RenderError(f"a picture is {picture.kind}; png, jpeg, webp and gif are taken")
                found[picture.name] = picture
                image["url"] = picture.name
    return tuple(found.values())


class _Turns:
    """Reads the turns of a job file; `pictures` gathers the columns that hold some."""

    def __init__(self, known: frozenset[str], items: bool) -> None:
        self.known = known
        self.items = items
        self.pictures: set[str] = set()

    def turn(self, turn: Mapping[str, Any], where: KeyPath) -> TemplateTree:
        if self.items and isinstance(turn.get("type"), str) and not (turn["type"] == "message" and "role" in turn):
            return compile_template(turn, self.known, where)
        content_key = "content"
        if "role" not in turn:
            if len(turn) != 1:
                raise JobError(where, f"has the keys {', '.join(map(str, turn))}", "write one role and its text")
            [(role, content)] = turn.items()
            if role not in SHORT_ROLES:
                raise JobError((*where, role), "no such role", f"{did_you_mean(str(role), SHORT_ROLES)}")
            turn, content_key = {"role": role, "content": content}, role
        keys = (*KEYS, *FURTHER_KEYS, *(("type", "phase", "status", "id") if self.items else ()))
        for key in turn:
            if key not in keys:
                raise JobError((*where, key), "no such key of a message", f"{did_you_mean(str(key), KEYS)}")
        role = turn["role"]
        if role not in ROLES:
            raise JobError((*where, "role"), f"no role {role!r}", f"{did_you_mean(str(role), ROLES)}")
        if role == "tool" and "tool_call_id" not in turn:
            raise JobError(where, "a tool's message says which call it answers", "add tool_call_id:")
        calls, content = turn.get("tool_calls"), turn.get("content")
        if content is None and calls is None and "function_call" not in turn and "refusal" not in turn:
            raise JobError((*where, content_key), "has no text", "write one")
        parts = {"role": literal(role), "content": self._content(content, role, (*where, content_key))}
        for key in ("name", "tool_call_id"):
            if turn.get(key) is not None:
                parts[key] = self._text(turn[key], (*where, key))
        for key in (key for key in keys if key in turn and key not in KEYS):
            parts[key] = compile_template(turn[key], self.known, (*where, key))
        message = mapping_template(parts)
        return message if calls is None else self._with_calls(message, calls, (*where, "tool_calls"))

    def _with_calls(self, message: TemplateTree, calls: Any, where: KeyPath) -> TemplateTree:
        if isinstance(calls, Mapping) and set(calls) == {"column"}:
            name = str(calls["column"])
            if name not in self.known:
                raise JobError((*where, "column"), f"no column {name} here", f"{did_you_mean(name, self.known)}")
            some = TemplateTree(lambda row: row[name], frozenset({name}))
        elif isinstance(calls, list | tuple) and calls:
            some = compile_template(calls, self.known, where)
        else:
            raise JobError(where, f"found {calls!r}, expected a list of calls or {{column: NAME}}", "correct it")
        if not some.varies_by_row:
            try:
                [normalize_tool_call(call) for call in some.render({})]
            except ValueError as exc:
                raise JobError(where, f"{exc}", "write {id, name, arguments}") from exc

        def fill(row: Row) -> dict[str, Any]:
            try:
                made = [normalize_tool_call(call) for call in some.render(row) or ()]
            except (ValueError, TypeError) as exc:
                raise RenderError(f"tool_calls: {exc}") from exc
            said = message.render(row)
            return {**said, "tool_calls": made} if made else {**said, "content": said["content"] or ""}

        return TemplateTree(fill, message.columns | some.columns)

    def _content(self, content: Any, role: str, where: KeyPath) -> TemplateTree:
        if content is None:
            return literal(None)
        if not isinstance(content, list | tuple):
            return self._text(content, where)
        if not content:
            raise JobError(where, "has no parts", "write a text, or parts such as {text: ...}")
        some = [self._part(part, role, (*where, place)) for place, part in enumerate(content)]
        if not any(several for _, several in some):
            return list_template([part for part, _ in some])

        def fill(row: Row) -> list[Any]:
            made: list[Any] = []
            for part, several in some:
                made.extend(part.render(row) if several else (part.render(row),))
            return made

        return TemplateTree(fill, frozenset[str]().union(*(part.columns for part, _ in some)))

    def _part(self, part: Any, role: str, where: KeyPath) -> tuple[TemplateTree, bool]:
        """(the part, whether it fills in to a list of parts)."""
        if not isinstance(part, Mapping) or not part:
            raise JobError(where, f"found {part!r}, expected a part", "write {text: ...} or {image: COLUMN}")
        if isinstance(part.get("type"), str):
            return compile_template(part, self.known, where), False
        keys = set(part)
        if keys == {"text"}:
            return mapping_template(
                {"type": literal("text"), "text": self._text(part["text"], (*where, "text"))}
            ), False
        if "image" in keys and keys <= {"image", "detail"}:
            if role != "user":
                raise JobError((*where, "image"), "only a user's message shows pictures", "move it there")
            detail = part.get("detail")
            if detail is not None and detail not in DETAILS:
                raise JobError((*where, "detail"), f"found {detail!r}, expected low, high or auto", "correct it")
            return self._image(part["image"], detail, (*where, "image"))
        odd = next((key for key in part if key not in ("text", "image", "detail")), "detail")
        raise JobError((*where, odd), "no such part", "write {text: ...}, {image: ..., detail: ...} or {type: ...}")

    def _image(self, image: Any, detail: str | None, where: KeyPath) -> tuple[TemplateTree, bool]:
        if not isinstance(image, str) or not image:
            raise JobError(where, f"found {image!r}, expected a column or a URL", "name one")
        more = {} if detail is None else {"detail": detail}
        if image in self.known:
            self.pictures.add(image)
            return TemplateTree(lambda row: _picture_parts(row[image], more)), True
        if "{" not in image and not _is_url(image):
            raise JobError(where, f"no column {image} and no URL", f"{did_you_mean(image, self.known)}")
        url = mapping_template(
            {"url": compile_text(image, self.known, where), **{k: literal(v) for k, v in more.items()}}
        )
        return mapping_template({"type": literal("image_url"), "image_url": url}), False

    def _text(self, source: Any, where: KeyPath) -> TemplateTree:
        if not isinstance(source, str):
            raise JobError(where, f"found {source!r}, expected text", "put it in quotes")
        return compile_text(source, self.known, where)


def _picture_parts(value: Any, more: Mapping[str, str]) -> list[dict[str, Any]]:
    """One part a picture; none for null."""
    some = value if isinstance(value, list | tuple) else (value,)
    parts: list[dict[str, Any]] = []
    for picture in some:
        if picture is None:
            continue
        if not isinstance(picture, Media) and not (isinstance(picture, str) and _is_url(picture)):
            raise RenderError(f"a picture is neither a file nor a URL: {str(picture)[:60]!r}")
        parts.append({"type": "image_url", "image_url": {"url": picture, **more}})
    return parts


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://", "data:"))
