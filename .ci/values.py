"""Prints the table of a chart's values, read from the comments of its values.yaml: values.py CHART

Every value has a comment that begins with "# --". With --write the table in the chart's README.md is replaced by it.
"""
import json
import pathlib
import re
import sys

import yaml

BEGIN, END = "<!-- values: made by .ci/values.py -->\n", "<!-- end of values -->\n"


def rows(text):
    """(path, default, meaning) of each commented value, in the file's order."""
    defaults = yaml.safe_load(text)
    path, comment = [], []
    for line in text.splitlines():
        if match := re.match(r"\s*# (-- )?(.*)", line):
            comment = [match[2]] if match[1] else comment and [*comment, match[2]]
        elif match := re.match(r"(\s*)([\w-]+):", line):
            depth = len(match[1]) // 2
            path = [*path[:depth], match[2]]
            if comment:
                value = defaults
                for key in path:
                    value = value[key]
                yield ".".join(path), json.dumps(value), " ".join(comment)
            comment = []
        elif not line.strip():
            comment = []


def table(chart):
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, meaning in rows((chart / "values.yaml").read_text()):
        lines.append(f"| `{path}` | `{default}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    chart = pathlib.Path(sys.argv[1])
    readme = chart / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    old, after = rest.split(END)
    new = table(chart)
    if "--write" in sys.argv:
        readme.write_text(before + BEGIN + new + END + after)
    elif old != new:
        sys.exit(f"{readme}: the table of values is not that of values.yaml; run: .ci/values.py {chart} --write")
