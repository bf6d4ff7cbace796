"""Tables in Markdown."""

import re
from typing import NamedTuple


class Table(NamedTuple):
    """Column names, and one list of cells per row."""

    head: list[str]
    body: list[list[str]]

    def __str__(self) -> str:
        """The table in Markdown. Columns of numbers are aligned to the right, except the first one."""
        columns = [[row[i] for row in self.body if row[i]] for i in range(len(self.head))]
        numeric = [
            i > 0 and all(re.match(r"[*+\-–\d]", c) for c in column) for i, column in enumerate(columns)
        ]
        lines = [
            f"| {' | '.join(self.head)} |",
            f"|{'|'.join(' --: ' if right else ' --- ' for right in numeric)}|",
            *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in self.body),
        ]
        return "\n".join(lines) + "\n"
