"""References in a JSON Schema, replaced by the definitions that they name."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from msgspec import Struct, field

from connectors.errors import FieldError, KeyPath, did_you_mean

MAX_SCHEMA_PARTS = 10_000
"""After references are replaced: a few definitions that name each other twice can ask for billions."""
MAX_SCHEMA_DEPTH = 100
_VERBATIM = frozenset({"enum", "const", "default", "examples", "$defs", "definitions"})
"""Keywords whose values contain values, or definitions that are used by reference only."""
_DYNAMIC = ("$dynamicRef", "$recursiveRef")
_RECURSIVE_REMEDY = "a column has a fixed depth: leave the field out"


class ResolvedSchema(Struct, frozen=True):
    """A JSON Schema without references."""

    schema: dict[str, Any]
    origins: Mapping[KeyPath, KeyPath]
    """Place of each part of `schema` -> its place in the document that it was read from."""


def resolve_references(document: Mapping[str, Any]) -> ResolvedSchema:
    """Replace `$ref`, and `anyOf` of a type and null by `nullable: true`.

    FieldError, with a key path in the document, for a reference to nothing, to another file, or to a schema around it.
    """
    resolver = _Resolver(document)
    schema = resolver.part(document, (), (), ())
    return ResolvedSchema(schema, resolver.origins)


class _Resolver(Struct):
    document: Mapping[str, Any]
    origins: dict[KeyPath, KeyPath] = field(default_factory=dict)

    def part(self, schema: Any, path: KeyPath, origin: KeyPath, trail: tuple[str, ...]) -> Any:
        """Return one part of the schema, which will be at `path`; `trail`: the references that led to it."""
        self.origins[path] = origin
        if len(self.origins) > MAX_SCHEMA_PARTS:
            found = f"references make more than {MAX_SCHEMA_PARTS:,} parts of it"
            raise FieldError(found, "use fewer", origin)
        if len(path) + len(trail) > MAX_SCHEMA_DEPTH:
            raise FieldError(f"nested more than {MAX_SCHEMA_DEPTH} deep", "flatten it", origin)
        if isinstance(schema, list):
            return [self.part(inner, (*path, n), (*origin, n), trail) for n, inner in enumerate(schema)]
        if not isinstance(schema, Mapping):
            return schema
        for name in _DYNAMIC:
            if name in schema:
                raise FieldError("contains itself", _RECURSIVE_REMEDY, (*origin, name))
        if isinstance(reference := schema.get("$ref"), str):
            if reference in trail:
                raise FieldError("contains itself", _RECURSIVE_REMEDY, (*origin, "$ref"))
            definition, place = self._definition(reference, (*origin, "$ref"))
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            resolved = self.part({**definition, **rest}, path, place, (*trail, reference))
            self.origins.update({(*path, key): (*origin, key) for key in rest})
            return resolved
        if (kind := _nullable_kind(schema)) is not None:
            index = schema["anyOf"].index(kind)
            rest = {key: value for key, value in schema.items() if key != "anyOf"}
            resolved = self.part({**kind, **rest}, path, (*origin, "anyOf", index), trail)
            self.origins.update({(*path, key): (*origin, key) for key in rest})
            return {**resolved, "nullable": True}
        return {
            key: value if key in _VERBATIM else self.part(value, (*path, key), (*origin, key), trail)
            for key, value in schema.items()
        }

    def _definition(self, reference: str, origin: KeyPath) -> tuple[Mapping[str, Any], KeyPath]:
        """Return what a reference names, and its key path in the document."""
        document, _, pointer = reference.partition("#")
        if document:
            raise FieldError(f"{reference} is in another file", "move it to $defs of this file", origin)
        here: Any = self.document
        path: list[str | int] = []
        for word in pointer.split("/")[1:]:
            key = unquote(word).replace("~1", "/").replace("~0", "~")
            if not isinstance(here, Mapping) or key not in here:
                known = list(here) if isinstance(here, Mapping) else []
                raise FieldError(f"{reference} does not exist in this file", did_you_mean(key, known), origin)
            here = here[key]
            path.append(key)
        if not isinstance(here, Mapping) or (pointer and not path):
            raise FieldError(f"{reference} names no schema of this file", "write e.g. #/$defs/NAME", origin)
        return here, tuple(path)


def _nullable_kind(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the one alternative of `anyOf` besides null; None for any other schema."""
    kinds = schema.get("anyOf")
    if "type" in schema or not isinstance(kinds, list) or len(kinds) != 2:
        return None
    others = [kind for kind in kinds if isinstance(kind, Mapping) and kind.get("type") != "null"]
    return others[0] if len(others) == 1 else None
