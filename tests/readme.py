"""What README.md must say, and what it says: its generated table, and the shell blocks that are executed.

`python -m tests.readme` writes the table anew.
"""

import re
from pathlib import Path

from pydantic.fields import FieldInfo

from tasks.settings import Settings

CHECKOUT = Path(__file__).parent.parent
README = CHECKOUT / "README.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def settings_table() -> str:
    """The table of settings as the class has them, Markdown."""
    lines = ["| Variable | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        meaning = (field.description or "").replace("|", r"\|")
        lines.append(f"| `KYCFLOW_{name.upper()}` | {_default(field)} | {meaning} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    # A default that is made anew depends on the machine; its description says what it is.
    if field.default_factory is not None or field.default in (None, {}):
        return ""
    return f"`{field.default}`"


def between_markers(text: str) -> str:
    """The table that stands in a text."""
    return text.split(BEGIN)[1].split(END, maxsplit=1)[0].strip()


def executed_block(name: str) -> str:
    """README's shell block under `<!-- executed: NAME -->`."""
    pattern = rf"<!-- executed: {re.escape(name)} -->\n+```bash\n(.*?)```"
    found = re.findall(pattern, README.read_text(), re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"README.md has {len(found)} blocks marked `executed: {name}`, not one.")
    block: str = found[0]
    return block


def main() -> None:
    """Put the table into README.md."""
    text = README.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{settings_table()}\n{END}{after}")


if __name__ == "__main__":
    main()
