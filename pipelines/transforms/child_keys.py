"""Keys of child rows as text: those of their source row, and their index."""

import pyarrow as pa

from connectors.sql import identifier_list, parser_connection


def child_key_starts(keys: pa.Table) -> list[str]:
    """Return the text of each child key up to its index: `["a",` of the source key a."""
    with parser_connection() as db:
        # Of this connection only: moments have the text that they have in the tables.
        db.execute("set TimeZone = 'UTC'")
        db.register("keys", keys)
        names = identifier_list(keys.column_names)
        found = db.execute(f"select cast(json_array({names}) as varchar) from keys").fetchall()
    return [f"{text[:-1]}," for (text,) in found]
