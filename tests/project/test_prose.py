"""Text that people read avoids phrases that a native speaker would not write."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATHS = (
    "README.md CONTRIBUTING.md CHANGELOG.md docs/*.md docs/conf.py examples/*.ipynb "
    "results/README.md robust_ham/**/*.py robust_ham/**/*.md robust_ham/report/template/* "
    "attacks/**/*.py configs/**/*.yaml"
).split()
BANNED = {
    "whoever": "name the person or process",
    r"(?:made|makes|make|measured|found|judged|told|computed) (?:anew|afresh)": "recompute, again",
    r"(?:nobody|nothing|who|which|that|everybody) (?:is|are) at work": "running",
    r"(?:is|are|was|be) at work": "running",
    r"\bof (?:one's|ones|your) own\b": "custom, your",
    r"go(?:es)? on (?:by|with the same|where)": "resume",
    "same command goes on": "rerun the same command to resume",
    r"\b[Ss]ays? of\b": "report",
    r"[Ww]hat \w+ is is\b": "rephrase",
    r"\b(?:comes?|came) by\b": "get",
    r"sees to it": "ensures",
    r"\bsuch as are\b": "that are",
    r"\bfor it to\b": "so that it",
    r"[Ss]omebody else's": "third-party",
    r"(?:undecided at|all of this explores)": "no clear difference at; exploratory",
    r"images? that (?:is|are) right|images right at first": "correctly classified images",
    r"without a bound": "whatever the size of the perturbation",
    "the first is it": "the first is the reference",
    "all there is room": "as many as fit",
    "what is left will": "estimated time left",
    r"\bcells? at a time\b": "jobs",
    r"\bNeeded are\b": "Required",
    r"may be told by": "Optional",
    "passed over": "skipped",
    r"\bwants? a GPU\b": "needs",
}


def files(patterns):
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()})


def texts(path):
    """Yield the text that people read in a file: strings of Python, cells of notebooks, all else.

    Comments count in every language.
    """
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
        yield from re.findall(r"(?:^|  )#(.*)$", content, re.MULTILINE)
    elif path.suffix == ".ipynb":
        yield from ("".join(cell["source"]) for cell in json.loads(content)["cells"])
    else:
        yield content


def banned_phrases(path):
    """Yield each banned phrase of a file with what to write instead."""
    for text in texts(path):
        line = re.sub(r"\s+", " ", text)
        for pattern, remedy in BANNED.items():
            for match in re.finditer(pattern, line):
                around = line[max(0, match.start() - 30) : match.end() + 30]
                yield f"{match[0]!r} in {around!r}: write {remedy}"


@pytest.mark.parametrize("path", files(PATHS), ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_plain_english(path):
    assert list(banned_phrases(path)) == []


def test_the_rule_can_fail(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""A run is told to stop when whoever\nasked is gone."""\nx = 1  # made anew\n'
    )
    assert len(list(banned_phrases(path))) == 2
    assert all(map(re.compile, BANNED))


if __name__ == "__main__":  # python tests/project/test_prose.py: what all files still contain
    total = 0
    for path in files(PATHS):
        if phrases := list(banned_phrases(path)):
            total += len(phrases)
            print(f"{path.relative_to(ROOT)}: {len(phrases)}", *phrases, sep="\n  ")
    print(total)
