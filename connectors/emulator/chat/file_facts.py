"""Facts about a document or a recording in a request: type, size, length."""

import binascii
import io
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from connectors.emulator.validation import check_media_packages, refuse
from connectors.media.audio_splitter import AudioError, duration_seconds
from connectors.media.document_types import DocumentError, detect_document
from connectors.media.file_types import HEAD_BYTES, detect_type

MAX_FILE_BYTES = 50 << 20


def describe_file(file: Mapping[str, Any], param: str) -> str:
    """Describe the content of a file part; ApiError 400 if it is no document. Names of other files are not read."""
    name = file.get("filename")
    data = file.get("file_data")
    if data is None:
        return f"a file {name or file.get('file_id') or ''} that was not read".replace("  ", " ")
    head, comma, body = data.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise refuse(f"{param}.file_data", f"Invalid '{param}.file_data': expected a base64 data URL.", "invalid_file")
    content = _decode(body, f"{param}.file_data")
    try:
        kind = detect_document(io.BytesIO(content))
    except DocumentError as exc:
        raise refuse(f"{param}.file_data", f"Invalid '{param}.file_data': the file {exc}.", "unsupported_file") from exc
    return f"a {kind.suffix} file of {len(content):,} bytes, {name or 'without a name'}"


def describe_audio(audio: Mapping[str, Any], param: str) -> str:
    """Describe a recording; ApiError 400 if it is not what its format says."""
    check_media_packages()
    content = _decode(audio["data"], f"{param}.data")
    kind = detect_type(content[:HEAD_BYTES])
    try:
        if kind is None or kind.suffix != audio["format"]:
            raise AudioError(f"it is not {audio['format']}")
        seconds = duration_seconds(io.BytesIO(content), kind.suffix)
    except AudioError as exc:
        raise refuse(f"{param}.data", f"Invalid '{param}.data': {exc}.", "invalid_audio") from exc
    return f"a {kind.suffix} clip of {seconds:.1f} seconds that was not listened to"


def _decode(body: str, param: str) -> bytes:
    try:
        content = b64decode(body, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise refuse(param, f"Invalid '{param}': its base64 cannot be read.", "invalid_value") from exc
    if len(content) > MAX_FILE_BYTES:
        raise refuse(param, f"Invalid '{param}': it is larger than {MAX_FILE_BYTES >> 20} MB.", "file_too_large")
    return content
