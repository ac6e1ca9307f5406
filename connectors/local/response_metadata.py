"""The metadata of a response in the reference's dialect (its section 2.9)."""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from connectors.local.chat_answers import Answer, Heard
from connectors.local.languages import language_of
from connectors.local.sentiment import compound, strength

WORDS_A_MINUTE = 200


def metadata_of(form: Mapping[str, Any], content: Any, made: Answer, heard: Heard) -> dict[str, Any]:
    """What belongs to the format of the response."""
    if form["type"] == "template":
        level = form.get("customization_level") or ("high" if len(form.get("variables") or {}) > 2 else "medium")
        return {
            "template_version": "2.1",
            "auto_generated": True,
            "customization_level": level,
            "template_compliance": 1.0,
        }
    if form["type"] in ("structured", "json_schema"):
        whole = not isinstance(content, str)
        told: dict[str, Any] = {"structure_compliance": whole, "validation_passed": whole, "schema_version": "1.0"}
        return {**told, "field_completeness": 1.0} if whole else told
    text = content if isinstance(content, str) else orjson.dumps(content).decode()
    told = {"content_type": "informational"}
    if form["type"] != "enhanced" or form.get("include_confidence", True):
        told["confidence_score"] = strength(compound(heard.subject))
    if form["type"] != "enhanced" or form.get("include_metadata", True):
        words = len(text.split())
        told |= {
            "word_count": words,
            "reading_time": f"{words / WORDS_A_MINUTE:.1f} minutes",
            "language": language_of(text),
        }
    if made.calls or heard.results or (form["type"] == "enhanced" and form.get("include_sources")):
        told |= {
            "data_sources": sorted({call.name for call in made.calls}) or ["rowmill-local"],
            "accuracy_level": "medium",
            "last_updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if made.calls:
            told["tool_execution_time"] = "0.0s"
    if form["type"] == "enhanced" and form.get("include_reasoning"):
        told["reasoning"] = "The first sentences of the last message were taken; no model was asked."
    return told
