"""Request checks: the first violation of a schema as the API's 400 that names the parameter, in its wording."""

from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema_rs import ValidationError
from msgspec import Struct

from connectors.emulator.api import ApiError
from connectors.emulator.api_schemas import RequestSchema
from connectors.emulator.real_models.catalogue import Task, check_real_model
from connectors.media.media_packages import MEDIA_EXTRA, has_media_packages

MAX_LISTED_VALUES = 12
"""Allowed values listed in a message."""

_TYPE_NAMES = {
    "string": "a string",
    "number": "a number",
    "integer": "an integer",
    "boolean": "a boolean",
    "array": "an array",
    "object": "an object",
}
_LIMITS = {
    "maxLength": ("string too long", "string with maximum length", "string_above_max_length"),
    "minItems": ("array too short", "array with minimum length", "array_below_min_length"),
    "maxItems": ("array too long", "array with maximum length", "array_above_max_length"),
    "maxProperties": ("too many properties", "object with maximum size", "object_above_max_properties"),
}
"""Keyword -> (fault, expectation, code)."""


def refuse(param: str, message: str, code: str) -> ApiError:
    """A 400 about one parameter."""
    return ApiError(400, message, param=param, code=code)


def missing(param: str) -> ApiError:
    """A 400 for a required parameter."""
    return refuse(param, f"Missing required parameter: '{param}'.", "missing_required_parameter")


def unknown(param: str) -> ApiError:
    """A 400 for a parameter that the API does not have."""
    return refuse(param, f"Unknown parameter: '{param}'.", "unknown_parameter")


def wrong_type(param: str, expected: str, value: Any) -> ApiError:
    """A 400 for a value of another type."""
    message = f"Invalid type for '{param}': expected {expected}, but got {type_name(value)} instead."
    return refuse(param, message, "invalid_type")


def check_body(body: Mapping[str, Any], schema: RequestSchema) -> None:
    """Raise ApiError for the first violation; missing parameters come before all others."""
    absent = next((name for name in schema.required if body.get(name) is None), None)
    if absent is not None:
        raise missing(absent)
    error = min(schema.errors(body), key=_rank, default=None)
    if error is not None:
        raise _Violation(error, schema, body).refusal()


def check_model(body: Mapping[str, Any], task: Task | None = None) -> str:
    """The requested model; ApiError 404 for names with the prefix `no-such-` and real models with another task."""
    model: str = body["model"]
    check_real_model(model, task)
    if model.startswith("no-such-"):
        raise model_not_found(model)
    return model


def model_not_found(model: str) -> ApiError:
    """The API's 404 for a model."""
    return ApiError(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def check_media_packages() -> None:
    """Raise ApiError unless the packages for sound and pictures are installed."""
    if not has_media_packages():
        message = f"The embedded provider has no sound and pictures without more packages: {MEDIA_EXTRA}"
        raise ApiError(404, message, code="model_not_found")


def type_name(value: Any) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    for kind, name in ((int, "an integer"), (float, "a decimal"), (str, "a string"), (list, "an array")):
        if isinstance(value, kind):
            return name
    return "an object"


class _Violation(Struct, frozen=True):
    """One violation of a schema by a body, as the API reports it."""

    error: ValidationError
    schema: RequestSchema
    body: Mapping[str, Any]

    def refusal(self) -> ApiError:
        """The error object."""
        kind, path = self.error.kind.name, self.error.instance_path
        value: Any = self.error.instance
        param = self._param(path)
        details = self.error.kind.as_dict()
        rule: Mapping[str, Any] = self.schema.lookup(self.error.schema_path[:-1])
        match kind:
            case "anyOf":
                return self._closest_refusal(details["context"])
            case "required":
                return missing(self._param([*path, details["property"]]))
            case "additionalProperties" if "patternProperties" in rule:
                return refuse(param, f"Invalid key in '{param}': {details['unexpected'][0]}.", "invalid_value")
            case "additionalProperties":
                return unknown(self._param([*path, details["unexpected"][0]]))
            case "type":
                return wrong_type(param, _expected(details["types"]), value)
            case "enum":
                return _not_allowed(param, value, details["options"])
            case "pattern":
                message = f"Expected a string that matches the pattern '{rule['pattern']}'."
                return refuse(param, f"Invalid '{param}': string does not match pattern. {message}", "invalid_value")
            case "minLength":
                return refuse(param, f"Invalid '{param}': empty string.", "empty_string")
            case "minItems" if not value:
                message = f"Expected an array with minimum length {details['limit']}, but got an empty array instead."
                return refuse(param, f"Invalid '{param}': empty array. {message}", "empty_array")
            case "minimum" | "maximum":
                number = "integer" if rule["type"] == "integer" else "decimal"
                side, sign, code = ("below", ">=", "min") if kind == "minimum" else ("above", "<=", "max")
                message = f"Expected a value {sign} {rule[kind]}, but got {value} instead."
                fault = f"Invalid '{param}': {number} {side} {kind} value. {message}"
                return refuse(param, fault, f"{number}_{side}_{code}_value")
            case _:
                fault, expected, code = _LIMITS[kind]
                message = f"Expected {expected} {details['limit']}, but got {len(value)} instead."
                return refuse(param, f"Invalid '{param}': {fault}. {message}", code)

    def _closest_refusal(self, branches: Sequence[Sequence[ValidationError]]) -> ApiError:
        """The error object of the alternative that was meant: of the value's JSON type, and with its `type`."""
        path = self.error.instance_path
        of_type = [branch for branch in branches if not any(_is_at(violation, path, "type") for violation in branch)]
        if not of_type:
            types = [
                name
                for branch in branches
                for violation in branch
                for name in violation.kind.as_dict().get("types", ())
            ]
            return wrong_type(self._param(path), _expected(types), self.error.instance)
        name = (
            "type" if any(_is_about(violation, path, "type") for branch in of_type for violation in branch) else "role"
        )
        tags = [[violation for violation in branch if _is_about(violation, path, name)] for branch in of_type]
        meant = [branch for branch, tag in zip(of_type, tags, strict=True) if not tag]
        if meant:
            closest: Sequence[ValidationError] = min(meant, key=_distance)
            return _Violation(min(closest, key=_rank), self.schema, self.body).refusal()
        unknown_tags = [violation for tag in tags for violation in tag if violation.kind.name == "enum"]
        if not unknown_tags:
            return missing(self._param([*path, tags[0][0].kind.as_dict()["property"]]))
        options = [option for violation in unknown_tags for option in violation.kind.as_dict()["options"]]
        first = unknown_tags[0]
        return _not_allowed(self._param(first.instance_path), first.instance, list(dict.fromkeys(options)))

    def _param(self, path: Sequence[str | int]) -> str:
        """`messages[0].role`."""
        param, inner = "", self.body
        for step in path:
            param += f"[{step}]" if isinstance(inner, list) else f".{step}"
            inner = inner[step] if isinstance(inner, list) else inner.get(str(step), {})
        return param.removeprefix(".")


def _is_at(error: ValidationError, path: Sequence[str | int], kind: str) -> bool:
    return error.kind.name == kind and error.instance_path == path


def _is_about(error: ValidationError, path: Sequence[str | int], name: str) -> bool:
    """Whether the property that distinguishes alternatives is missing or has another value."""
    if _is_at(error, path, "required"):
        return bool(error.kind.as_dict()["property"] == name)
    return _is_at(error, [*path, name], "enum")


def _distance(branch: Sequence[ValidationError]) -> tuple[int, int]:
    """How far a value is from an alternative: by values of another type, then by all violations."""
    return sum(error.kind.name == "type" for error in branch), len(branch)


def _rank(error: ValidationError) -> int:
    """The order in which violations are reported: a wrong `type`, a missing parameter, any other."""
    if error.kind.name == "enum" and error.instance_path[-1:] == ["type"]:
        return 0
    return 1 if error.kind.name == "required" else 2


def _not_allowed(param: str, value: Any, options: Sequence[str]) -> ApiError:
    if not isinstance(value, str):
        return wrong_type(param, "a string", value)
    return refuse(param, f"Invalid value: '{value}'. Supported values are: {_listed(options)}.", "invalid_value")


def _expected(types: Sequence[str]) -> str:
    """`a string or an array`; null is not listed."""
    return " or ".join(dict.fromkeys(_TYPE_NAMES[name] for name in types if name != "null"))


def _listed(options: Sequence[str]) -> str:
    """`'a', 'b', and 'c'`."""
    quoted = [f"'{option}'" for option in options[:MAX_LISTED_VALUES]]
    if len(options) > MAX_LISTED_VALUES:
        return f"{', '.join(quoted)}, and others"
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])}, and {quoted[-1]}"
