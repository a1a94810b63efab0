"""Write docs/messages.md from what the cases in tests/cases.py really print: ``python tools/update_messages.py``."""

import itertools
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
HEAD = """\
# What it says when something goes wrong

Every case here is provoked by a test, and the messages are those that it printed; this page is written from them by
`tools/update_messages.py`. Unless another is named, the command is

    eva-utils train --data photos --out runs/demo ...

Exit status: 0 done, 1 memory ran out or a worker process died, 2 bad input, a file that cannot be written or a rate
that is too high, 130 stopped by Ctrl-C, 143 stopped by SIGTERM. In a notebook, the same words come as an `InputError`
or `RunError`; an out-of-memory error is torch's own. Whatever the case, the last good checkpoint stays, and a run
looks finished (`results.json`) only when it is.

In the messages, `...` stands for words of the system or of a library. Where the last column is empty, the message says
it all.
"""


def row(case, message: str) -> str:
    """The line of the table for ``case``."""
    lines = [f"`{line.strip()}`" for line in message.replace("|", "\\|").splitlines() if line.strip()]
    return f"| {'<br>'.join(lines)} | {case.status} | {case.why} | {case.todo} |"


def page(rows: list[str], sizes: dict[str, int]) -> str:
    """The whole page: ``rows`` in tables of these sizes, by heading."""
    rows, parts = iter(rows), [HEAD]
    for heading, size in sizes.items():
        table = [next(rows) for _ in range(size)]
        parts.append(f"\n## {heading}\n\n| what it says | status | why | what to do |\n|---|---|---|---|\n")
        parts.append("\n".join(table) + "\n")
    return "".join(parts)


def main() -> None:
    import cases

    rows = []
    for case in itertools.chain(*cases.CASES.values()):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            cases.write_photos()
            status, printed = case.act()
            assert status == case.status, f"{case.why}: {status}\n{printed}"
            rows.append(row(case, case.message(printed)))
            os.chdir(ROOT)
    sizes = {heading: len(group) for heading, group in cases.CASES.items()}
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "messages.md").write_text(page(rows, sizes), encoding="utf8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
