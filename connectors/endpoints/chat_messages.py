"""The dialogue of a chat request as the job file writes it: every text a template over the row's columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.errors import JobError, did_you_mean
from connectors.exchange import Row
from connectors.template import Template

SHORT_ROLES = ("system", "user", "assistant", "developer")
ROLES = (*SHORT_ROLES, "tool", "function")
KEYS = ("role", "content", "name", "tool_call_id", "tool_calls")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: what is the same for every row, and the texts that are filled from it."""

    fixed: Mapping[str, Any]
    texts: Mapping[str, Template]

    @property
    def columns(self) -> frozenset[str]:
        """The columns that its texts name."""
        return frozenset().union(*(template.columns for template in self.texts.values()))

    def rendered(self, row: Row) -> dict[str, Any]:
        """The turn as the API takes it; TemplateProblem where the row makes none."""
        message = dict(self.fixed)
        for key, template in self.texts.items():
            message[key] = template.render(row)
        return message


def message_templates(messages: Sequence[Mapping[str, Any]], columns: Iterable[str], where: str) -> tuple[Message, ...]:
    """The turns of a dialogue; JobError, placed below `where`, if they are none over these columns."""
    known = frozenset(columns)
    return tuple(_message(message, known, f"{where}.messages.{place}") for place, message in enumerate(messages))


def _message(message: Mapping[str, Any], known: frozenset[str], where: str) -> Message:
    content_key = "content"
    if "role" not in message:
        if len(message) != 1:
            raise JobError(f"{where}: has the keys {', '.join(message)}; write one role and its text")
        [(role, content)] = message.items()
        if role not in SHORT_ROLES:
            raise JobError(f"{where}.{role}: no such role; {did_you_mean(role, SHORT_ROLES)}")
        message, content_key = {"role": role, "content": content}, role
    for key in message:
        if key not in KEYS:
            raise JobError(f"{where}.{key}: no such key of a message; {did_you_mean(key, KEYS)}")
    role = message["role"]
    if role not in ROLES:
        raise JobError(f"{where}.role: no role {role!r}; {did_you_mean(str(role), ROLES)}")
    if role == "tool" and "tool_call_id" not in message:
        raise JobError(f"{where}: a tool's message says which call it answers; add tool_call_id:")
    calls = message.get("tool_calls")
    if message.get("content") is None and calls is None:
        raise JobError(f"{where}.{content_key}: has no text; write one")
    fixed = {"role": role, "content": None, **({} if calls is None else {"tool_calls": calls})}
    texts: dict[str, Template] = {}
    for key in ("content", "name", "tool_call_id"):
        if message.get(key) is not None:
            texts[key] = _text(message[key], known, f"{where}.{content_key if key == 'content' else key}")
    return Message(fixed, texts)


def _text(source: Any, known: frozenset[str], where: str) -> Template:
    if not isinstance(source, str):
        raise JobError(f"{where}: found {source!r}, expected text; put it in quotes")
    template = Template(source, where)
    for name in sorted(template.columns - known):
        raise JobError(f"{where}: no column {name} here; {did_you_mean(name, known)}")
    return template
