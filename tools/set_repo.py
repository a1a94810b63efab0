"""Point README and notebooks to another repository: ``python tools/set_repo.py OWNER/NAME``.

Badges and install cells carry one OWNER/NAME; the one that is there now is read from README's first badge.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")


def files() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CITATION.cff", *sorted((ROOT / "notebooks").glob("*.ipynb"))]


def current() -> str:
    return re.search(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/", files()[0].read_text(encoding="utf8"))[1]


def main(argv: list[str]) -> int:
    if len(argv) != 1 or not SLUG.fullmatch(argv[0]):
        print("usage: python tools/set_repo.py OWNER/NAME", file=sys.stderr)
        return 2
    # Only where a repository's address can stand, so that a slug's letters elsewhere are left alone.
    old = re.compile(r"(github\.com/|google\.com/github/)" + re.escape(current()) + r"(?![\w-])")
    for path in files():
        text = path.read_text(encoding="utf8")
        path.write_text(old.sub(rf"\g<1>{argv[0]}", text), encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
