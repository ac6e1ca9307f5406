"""pandas is imported by a conversion, and not by the first array."""

import subprocess
import sys

SCRIPT = """
import sys
from pipelines.runtime.pandas_import import defer_pandas
defer_pandas()
import pyarrow as pa
table = pa.table({"n": [1, 2]})
print("pandas" in sys.modules)
frame = table.to_pandas()
print("pandas" in sys.modules, frame.n.sum(), pa.Table.from_pandas(frame).num_rows)
"""


def test_pandas_is_imported_by_a_conversion_and_not_by_the_first_array() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["False", "True 3 2"]
