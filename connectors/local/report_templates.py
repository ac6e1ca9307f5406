"""Reports by template, as the reference's dialect of responses makes them (its section 2.5.5)."""

import time
from collections.abc import Mapping
from typing import Any

from connectors.local.api import ApiError
from connectors.local.chat_answers import Heard
from connectors.local.words import first_sentence, sentences

TEMPLATES = ("project_status", "sales_report", "technical_doc")
"""Also under their names with `_report`."""


def report(form: Mapping[str, Any], heard: Heard, digest: bytes) -> dict[str, Any]:
    """`{template_name, generated_content}`; ApiError 404 for a template that there is none of."""
    name = form["template_id"]
    known = next((one for one in TEMPLATES if name in (one, f"{one}_report")), None)
    if known is None:
        raise ApiError(
            404,
            f"Template '{name}' not found",
            param="response_format.template_id",
            code="template_not_found",
            more={"available_templates": list(TEMPLATES)},
        )
    header = {**(form.get("variables") or {}), "report_date": time.strftime("%Y-%m-%d", time.gmtime())}
    parts = {"project_status": _status, "sales_report": _sales, "technical_doc": _document}[known](heard, digest)
    return {"template_name": name, "generated_content": {"header": header, **parts}}


def _status(heard: Heard, digest: bytes) -> dict[str, Any]:
    done = digest[0] % 101
    return {
        "status_overview": {
            "overall_status": "On Track" if digest[1] % 3 else "At Risk",
            "completion_percentage": done,
            "budget_utilization": digest[2] % 101,
        },
        "key_milestones": [
            {"milestone": first_sentence(heard.subject), "status": "Completed" if done == 100 else "In Progress"}
        ],
        "risks_and_issues": [
            {
                "type": "risk",
                "description": "This report is local: no model was asked.",
                "severity": ("low", "medium", "high")[digest[3] % 3],
                "mitigation": "Ask another provider.",
            }
        ],
    }


def _sales(heard: Heard, digest: bytes) -> dict[str, Any]:
    return {
        "summary": first_sentence(heard.subject),
        "key_metrics": {"total_revenue": int.from_bytes(digest[:3], "big"), "growth_rate": digest[3] / 1000},
        "recommendations": [{"action": "Ask another provider.", "priority": "low"}],
    }


def _document(heard: Heard, digest: bytes) -> dict[str, Any]:
    return {
        "abstract": first_sentence(heard.subject),
        "sections": [
            {"title": f"Part {place}", "text": text} for place, text in enumerate(sentences(heard.subject), 1)
        ],
    }
