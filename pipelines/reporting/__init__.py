"""Status, errors, usage, the history of a row, and the HTML report."""
