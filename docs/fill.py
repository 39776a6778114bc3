"""Puts the tables into the pages: `make tables`."""

import re
from pathlib import Path

import tables


def filled(page: str) -> str:
    """A page with its tables, each after the mark that names it, as they are now."""

    def table(marked: re.Match[str]) -> str:
        name, *arguments = marked[1].split()
        return f"<!-- table: {marked[1]} -->\n{getattr(tables, name)(*arguments)}\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w -]+) -->\n.*?<!-- end -->", table, page, flags=re.S)


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.md")):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
