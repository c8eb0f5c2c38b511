"""Rebuild the tables of results/README.md from the rows: python tools/results_tables.py"""

import re
from pathlib import Path

from robust_ham.analysis.run import Run
from robust_ham.analysis.tables import make_tables
from robust_ham.report.formats import markdown_rows
from robust_ham.report.tables import answers_table
from robust_ham.storage.run_folder import RunFolder

PAGE = Path(__file__).parent.parent / "results" / "README.md"
PLACE = re.compile(r"(<!-- answers of ([\w/]+) -->\n)(?:\n(?:\|.*\n)+)?")


def filled(text):
    """Return the page with the table of each folder that it names."""

    def table(match):
        tables = make_tables(Run(RunFolder(PAGE.parent / match[2])))
        return f"{match[1]}\n{markdown_rows(answers_table(tables))}"

    return PLACE.sub(table, text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
