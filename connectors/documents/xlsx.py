"""Workbooks (XLSX): a page is a sheet, its name and then a line for each row, with tabs between the values.

A formula has the value that it had when the file was saved.
"""

import datetime
from typing import BinaryIO

import python_calamine

from connectors.documents.office_package import OfficePackage
from connectors.media.document_types import DocumentError


def read_pages(file: BinaryIO) -> list[str]:
    """Return the text of each sheet, in the order of the workbook."""
    OfficePackage(file)  # its limits
    file.seek(0)
    try:
        workbook = python_calamine.CalamineWorkbook.from_filelike(file)
        sheets = [
            sheet.name for sheet in workbook.sheets_metadata if sheet.typ == python_calamine.SheetTypeEnum.WorkSheet
        ]
        return [_sheet(workbook, name) for name in sheets]
    except python_calamine.PasswordError as exc:
        raise DocumentError("is encrypted; save it without a password") from exc
    except (python_calamine.CalamineError, OSError, ValueError) as exc:
        raise DocumentError(f"is a broken workbook ({exc}); save it again") from exc


def _sheet(workbook: python_calamine.CalamineWorkbook, name: str) -> str:
    lines = ["\t".join(map(_text, row)).rstrip() for row in workbook.get_sheet_by_name(name).iter_rows()]
    # Empty rows are one gap, however many they are.
    filled = (line for line, before in zip(lines, ["", *lines], strict=False) if line or before)
    return "\n".join([name, *filled]).rstrip()


def _text(value: object) -> str:
    match value:
        case bool():
            return "TRUE" if value else "FALSE"
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case datetime.datetime():
            return value.isoformat(" ")
        case str():
            return " ".join(value.split())
    return str(value)
