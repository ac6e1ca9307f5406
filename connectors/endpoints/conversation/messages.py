"""The messages of a step: written in the job file, every text a template, or whole conversations from a column."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from connectors.contracts import FrozenModel, MediaColumn
from connectors.endpoints.conversation.history_column import (
    MESSAGE_KEYS,
    PASSED_KEYS,
    ROLES,
    SHORT_ROLES,
    can_hold_conversation,
    list_in_column,
    parse_conversation,
)
from connectors.endpoints.conversation.tool_calls import normalize_tool_call
from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.media.media_packages import require_media_packages
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

MAX_PICTURE_BYTES = 20 << 20
"""Section 13.4.2 of the reference."""

PICTURE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
"""Section 13.4.2 of the reference."""

PICTURE_DETAILS = ("low", "high", "auto")

MAX_DOCUMENT_BYTES = 50 << 20
"""OpenAI's limit of all files in a request."""

MAX_AUDIO_BYTES = 25 << 20

AUDIO_FORMATS = frozenset({"wav", "mp3"})
"""The formats of `input_audio` in OpenAI's description."""

FILE_PARTS = ("image", "file", "audio")
"""The kinds of parts that name a column of files."""

_PLURALS = {"image": "pictures", "file": "files", "audio": "audio"}
_REMEDIES = {
    "image": "leave it out",
    "file": "use endpoint: chat, or OpenAI's format of responses",
    "audio": "use endpoint: chat, or a transcription step before this one",
}


class ColumnReference(FrozenModel):
    """A column that holds whole conversations."""

    column: str = Field(min_length=1, description="A column of list of struct, or JSON text.", examples=["history"])


Messages = str | Sequence[Mapping[str, Any]] | ColumnReference
"""A text is one message of the user."""


class Conversation:
    """The messages that a step sends, in the format of chat completions."""

    def __init__(
        self,
        messages: Messages,
        columns: Mapping[str, pa.DataType],
        where: KeyPath,
        allows_items: bool = False,
        file_parts: Collection[str] = FILE_PARTS,
    ) -> None:
        """JobError below `where` for messages that do not fit these columns.

        `allows_items`: the messages may include input items of responses (with a `type`), which pass unchanged.
        `file_parts`: those of FILE_PARTS that the wire format has.
        """
        self.media: Mapping[str, MediaColumn] = {}
        """The columns of pictures, documents and audio."""
        self.text_columns: frozenset[str]
        """The columns that its texts name."""
        self._trees: Sequence[TemplateTree] = ()
        self._ends_with_text = True
        self.render_last_text: Callable[[Row], Any] | None = None
        """Returns the text of the last message, if it is one of the user; RenderError if the row's values make none."""
        if isinstance(messages, ColumnReference):
            name = messages.column
            if name not in columns:
                raise JobError((*where, "column"), f"no column {name} here", did_you_mean(name, columns))
            if not can_hold_conversation(columns[name]):
                raise JobError(
                    (*where, "column"),
                    f"{name} is {columns[name]}",
                    "a conversation is a list of struct, or its JSON text",
                )
            self.text_columns = frozenset({name})
            self._render: Callable[[Row], list[dict[str, Any]]] = lambda row: parse_conversation(
                row, name, allows_items
            )
            return
        compiler = _MessageCompiler(frozenset(columns), allows_items, file_parts)
        if isinstance(messages, str):
            content = compile_text(messages, columns, where)
            self._trees = [mapping_template({"role": literal("user"), "content": content})]
            self.render_last_text = content.render
        else:
            self._ends_with_text = _is_user_text(messages[-1])
            self._trees = [compiler.message(message, (*where, index)) for index, message in enumerate(messages)]
            self.render_last_text = compiler.last_content.render if self._ends_with_text else None
        tree = list_template(self._trees)
        self.text_columns = tree.columns
        self.media = dict(sorted(compiler.media.items()))
        self._render = tree.render

    def render(self, row: Row) -> tuple[list[dict[str, Any]], tuple[Media, ...]]:
        """Return the messages with the row's values, and the files in them; RenderError if the values make none."""
        messages = self._render(row)
        return (messages, _extract_files(messages)) if self.media else (messages, ())

    @property
    def has_documents(self) -> bool:
        """Whether its requests have files whose tokens only the provider knows."""
        return any(use.kind != "image" for use in self.media.values())

    def constant_messages(self) -> list[dict[str, Any]] | None:
        """Return the messages before the last; None unless only the last depends on the row, as a text of the user."""
        if not self._trees or not self._ends_with_text or not self._trees[-1].varies_by_row:
            return None
        before = self._trees[:-1]
        return None if any(tree.varies_by_row for tree in before) else [tree.render({}) for tree in before]


def _is_user_text(message: Mapping[str, Any]) -> bool:
    """Return whether a message of the job file is one text of the user, and nothing else."""
    content = message.get("content") if message.get("role") == "user" else message.get("user")
    return isinstance(content, str) and message.keys() <= {"role", "content", "user"}


def _extract_files(messages: Iterable[Mapping[str, Any]]) -> tuple[Media, ...]:
    """Replace files by their names and return them."""
    files: dict[str, Media] = {}
    for message in messages:
        content = message.get("content")
        if not isinstance(content, list):
            continue
        if not content:
            raise RenderError("a message has no content: its file is null, and it has no text")
        for part in content:
            for kind, key in (("image_url", "url"), ("file", "file_data"), ("input_audio", "data")):
                source = part.get(kind)
                if isinstance(source, dict) and isinstance(file := source.get(key), Media):
                    files[file.name] = file
                    source[key] = file.name
    return tuple(files.values())


class _MessageCompiler:
    """Compiler of a job file's messages; it collects the columns of files."""

    def __init__(self, columns: frozenset[str], allows_items: bool, file_parts: Collection[str]) -> None:
        self.columns = columns
        self.allows_items = allows_items
        self.file_parts = file_parts
        self.media: dict[str, MediaColumn] = {}
        self.last_content = literal(None)
        """Of the message that was compiled last."""

    def message(self, message: Mapping[str, Any], where: KeyPath) -> TemplateTree:
        if (
            self.allows_items
            and isinstance(message.get("type"), str)
            and not (message["type"] == "message" and "role" in message)
        ):
            return compile_template(message, self.columns, where)
        content_key = "content"
        if "role" not in message:
            if len(message) != 1:
                raise JobError(where, f"has the keys {', '.join(map(str, message))}", "write one role and its text")
            [(role, content)] = message.items()
            if role not in SHORT_ROLES:
                raise JobError((*where, role), "no such role", did_you_mean(str(role), SHORT_ROLES))
            message, content_key = {"role": role, "content": content}, role
        keys = (*MESSAGE_KEYS, *PASSED_KEYS, *(("type", "phase", "status", "id") if self.allows_items else ()))
        for key in message:
            if key not in keys:
                raise JobError((*where, key), "no such key of a message", did_you_mean(str(key), MESSAGE_KEYS))
        role = message["role"]
        if role not in ROLES:
            raise JobError((*where, "role"), f"no role {role!r}", did_you_mean(str(role), ROLES))
        if role == "tool" and "tool_call_id" not in message:
            raise JobError(where, "a tool's message has no tool_call_id", "add the id of the call that it answers")
        calls, content = message.get("tool_calls"), message.get("content")
        if content is None and calls is None and "function_call" not in message and "refusal" not in message:
            raise JobError((*where, content_key), "has no text", "write one")
        self.last_content = self._content(content, role, (*where, content_key))
        parts = {"role": literal(role), "content": self.last_content}
        for key in ("name", "tool_call_id"):
            if message.get(key) is not None:
                parts[key] = self._text(message[key], (*where, key))
        for key in (key for key in keys if key in message and key not in MESSAGE_KEYS):
            parts[key] = compile_template(message[key], self.columns, (*where, key))
        tree = mapping_template(parts)
        return tree if calls is None else self._with_calls(tree, calls, (*where, "tool_calls"))

    def _with_calls(self, message: TemplateTree, calls: Any, where: KeyPath) -> TemplateTree:
        if isinstance(calls, Mapping) and set(calls) == {"column"}:
            name = str(calls["column"])
            if name not in self.columns:
                raise JobError((*where, "column"), f"no column {name} here", did_you_mean(name, self.columns))
            call_tree = TemplateTree(lambda row: list_in_column(row, name), frozenset({name}))
        elif isinstance(calls, list | tuple) and calls:
            call_tree = compile_template(calls, self.columns, where)
        else:
            raise JobError(where, f"found {calls!r}, expected a list of calls or {{column: NAME}}", "correct it")
        if not call_tree.varies_by_row:
            try:
                [normalize_tool_call(call) for call in call_tree.render({})]
            except ValueError as exc:
                raise JobError(where, str(exc), "write {id, name, arguments}") from exc

        def render(row: Row) -> dict[str, Any]:
            try:
                rendered = [normalize_tool_call(call) for call in call_tree.render(row) or ()]
            except (ValueError, TypeError) as exc:
                raise RenderError(f"tool_calls: {exc}") from exc
            body = message.render(row)
            if rendered:
                return {**body, "tool_calls": rendered}
            return {**body, "content": body["content"] or ""}

        return TemplateTree(render, message.columns | call_tree.columns)

    def _content(self, content: Any, role: str, where: KeyPath) -> TemplateTree:
        if content is None:
            return literal(None)
        if not isinstance(content, list | tuple):
            return self._text(content, where)
        if not content:
            raise JobError(where, "has no parts", "write a text, or parts such as {text: ...}")
        parts = [self._part(part, role, (*where, index)) for index, part in enumerate(content)]
        if not any(is_list for _, is_list in parts):
            return list_template([part for part, _ in parts])

        def render(row: Row) -> list[Any]:
            rendered: list[Any] = []
            for part, is_list in parts:
                rendered.extend(part.render(row) if is_list else (part.render(row),))
            return rendered

        return TemplateTree(render, frozenset[str]().union(*(part.columns for part, _ in parts)))

    def _part(self, part: Any, role: str, where: KeyPath) -> tuple[TemplateTree, bool]:
        """Return (the part, whether it renders to a list of parts)."""
        if not isinstance(part, Mapping) or not part:
            raise JobError(where, f"found {part!r}, expected a part", "write {text: ...} or {image: COLUMN}")
        if isinstance(part.get("type"), str):
            return compile_template(part, self.columns, where), False
        keys = set(part)
        if keys == {"text"}:
            return mapping_template(
                {"type": literal("text"), "text": self._text(part["text"], (*where, "text"))}
            ), False
        kind = next((kind for kind in FILE_PARTS if kind in keys), None)
        if kind is not None and keys <= ({kind, "detail"} if kind == "image" else {kind}):
            if role != "user":
                raise JobError((*where, kind), f"only a user's message has {_PLURALS[kind]}", "move it there")
            if kind not in self.file_parts:
                raise JobError((*where, kind), f"this endpoint takes no {_PLURALS[kind]}", _REMEDIES[kind])
            if kind != "image":
                return self._file(kind, part[kind], (*where, kind)), True
            detail = part.get("detail")
            if detail is not None and detail not in PICTURE_DETAILS:
                raise JobError((*where, "detail"), f"found {detail!r}, expected low, high or auto", "correct it")
            return self._image(part["image"], detail, (*where, "image"))
        unknown = next((key for key in part if key not in ("text", "detail", *FILE_PARTS)), "detail")
        raise JobError(
            (*where, unknown),
            "no such part",
            "write {text: ...}, {image: ..., detail: ...}, {file: ...}, {audio: ...} or {type: ...}",
        )

    def _file(self, kind: str, column: Any, where: KeyPath) -> TemplateTree:
        """Return the parts of a column of documents or audio."""
        if not isinstance(column, str) or column not in self.columns:
            raise JobError(where, f"no column {column}", did_you_mean(str(column), self.columns))
        if kind == "file":
            # Responses take the URL of a file, chat does not.
            self._add(column, MediaColumn("document", MAX_DOCUMENT_BYTES, passes_urls=self.allows_items), where)
            return TemplateTree(lambda row: [_document_part(file) for file in _values(row[column])])
        require_media_packages(where)
        self._add(column, MediaColumn("audio", MAX_AUDIO_BYTES), where)
        return TemplateTree(lambda row: [_audio_part(file) for file in _values(row[column])])

    def _add(self, column: str, use: MediaColumn, where: KeyPath) -> None:
        if self.media.setdefault(column, use) != use:
            raise JobError(where, f"{column} is used for two kinds of files", "name it twice in the source")

    def _image(self, image: Any, detail: str | None, where: KeyPath) -> tuple[TemplateTree, bool]:
        if not isinstance(image, str) or not image:
            raise JobError(where, f"found {image!r}, expected a column or a URL", "name one")
        detail_key = {} if detail is None else {"detail": detail}
        if image in self.columns:
            self._add(image, MediaColumn("image", MAX_PICTURE_BYTES, passes_urls=True), where)
            return TemplateTree(lambda row: [_picture_part(file, detail_key) for file in _values(row[image])]), True
        if "{" not in image and not _is_url(image):
            raise JobError(where, f"no column {image} and no URL", did_you_mean(image, self.columns))
        url = mapping_template(
            {"url": compile_text(image, self.columns, where), **{k: literal(v) for k, v in detail_key.items()}}
        )
        return mapping_template({"type": literal("image_url"), "image_url": url}), False

    def _text(self, source: Any, where: KeyPath) -> TemplateTree:
        if isinstance(source, Mapping) and len(source) == 1:
            raise JobError((*where, *source), "no such key", "write {file: PATH}, or a text in quotes")
        if not isinstance(source, str):
            raise JobError(where, f"found {source!r}, expected text", "put it in quotes")
        return compile_text(source, self.columns, where)


def _values(value: Any) -> list[Any]:
    """Return the files of a row's column, one or a list; none for null."""
    values = value if isinstance(value, list | tuple) else (value,)
    return [each for each in values if each is not None]


def _picture_part(picture: Any, detail_key: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(picture, Media) and not (isinstance(picture, str) and _is_url(picture)):
        raise RenderError(f"a picture is neither a file nor a URL: {str(picture)[:60]!r}")
    if isinstance(picture, Media) and picture.kind not in PICTURE_TYPES:
        raise RenderError(f"a picture is {picture.kind}; expected png, jpeg, webp or gif")
    return {"type": "image_url", "image_url": {"url": picture, **detail_key}}


def _document_part(document: Any) -> dict[str, Any]:
    if isinstance(document, Media):
        # The name is made of the content, so that a file that is moved is no new request.
        return {"type": "file", "file": {"filename": f"document.{document.suffix}", "file_data": document}}
    return {"type": "file", "file": {"file_url": document}}


def _audio_part(audio: Any) -> dict[str, Any]:
    if not isinstance(audio, Media):
        raise RenderError(f"audio is not a file: {str(audio)[:60]!r}")
    if audio.suffix not in AUDIO_FORMATS:
        raise RenderError(f"audio is {audio.suffix}; expected wav or mp3, convert it")
    return {"type": "input_audio", "input_audio": {"data": audio, "format": audio.suffix}}


def _is_url(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://", "data:"))
