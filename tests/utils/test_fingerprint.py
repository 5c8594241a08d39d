"""A function's fingerprint follows what it computes."""

import importlib.util
import re
import sys

import pytest

from utils.fingerprint import code_fingerprint


def load(tmp_path, source: str, name: str = "edited_script"):
    """Import `source` as a module, as a script that was edited and started again would be."""
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


SCRIPT = """
import re
PREFIX = "Title: "
PATTERN = re.compile("a+")
def clean(text, suffix="."):
    return PATTERN.sub("a", text) + suffix
class Template:
    text = "x"
def unused():
    return 1
def document_text(row):
    return PREFIX + clean(row["text"]) + Template.text
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('PREFIX + clean(row["text"])', 'clean(row["text"])'),
        ('"Title: "', '"Titel: "'),
        ('row["text"]', 'row["body"]'),
        ('suffix="."', 'suffix="!"'),
        ('PATTERN.sub("a", text)', "text"),
        ('"a+"', '"b+"'),
        ('text = "x"', 'text = "y"'),
    ],
)
def test_edits_change_it(tmp_path, old, new):
    before = code_fingerprint(load(tmp_path, SCRIPT).document_text)
    assert old in SCRIPT
    assert code_fingerprint(load(tmp_path, SCRIPT.replace(old, new)).document_text) != before


@pytest.mark.parametrize(("old", "new"), [("return 1", "return 2"), ("\nPREFIX", "\n# a comment\nPREFIX")])
def test_other_edits_do_not(tmp_path, old, new):
    before = code_fingerprint(load(tmp_path, SCRIPT).document_text)
    assert code_fingerprint(load(tmp_path, SCRIPT.replace(old, new)).document_text) == before


def test_an_imported_module_of_ours_counts_too(tmp_path, monkeypatch):
    script = "import cleaning\ndef document_text(row):\n    return cleaning.clean(row)\n"
    prints = set()
    for body in ("row", "row + 1"):
        load(tmp_path, f"def clean(row):\n    return {body}\n", "cleaning")
        prints.add(code_fingerprint(load(tmp_path, script).document_text))
    assert len(prints) == 2


def test_closures_count():
    def make(title):
        return lambda row: title + row["text"]

    assert code_fingerprint(make("a")) == code_fingerprint(make("a")) != code_fingerprint(make("b"))


def test_installed_functions_count_by_name():
    def document_text(row):
        return re.escape(row["text"])

    assert code_fingerprint(document_text) == code_fingerprint(document_text)
