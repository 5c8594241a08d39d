"""The fingerprint of a function changes with what it computes."""

import importlib.util
import re
import sys

import pytest

from utils.fingerprint import code_fingerprint


def load(tmp_path, source: str, name: str = "edited_script"):
    """Import `source` as a module, as if a script had been edited and started again."""
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
def test_relevant_edits_change_the_fingerprint(tmp_path, old, new):
    before = code_fingerprint(load(tmp_path, SCRIPT).document_text)
    assert old in SCRIPT
    assert code_fingerprint(load(tmp_path, SCRIPT.replace(old, new)).document_text) != before


@pytest.mark.parametrize(("old", "new"), [("return 1", "return 2"), ("\nPREFIX", "\n# a comment\nPREFIX")])
def test_irrelevant_edits_do_not(tmp_path, old, new):
    before = code_fingerprint(load(tmp_path, SCRIPT).document_text)
    assert code_fingerprint(load(tmp_path, SCRIPT.replace(old, new)).document_text) == before


def test_imported_modules_count_unless_installed(tmp_path, monkeypatch):
    script = "import cleaning\ndef document_text(row):\n    return cleaning.clean(row)\n"
    fingerprints = set()
    for body in ("row", "row + 1"):
        load(tmp_path, f"def clean(row):\n    return {body}\n", "cleaning")
        fingerprints.add(code_fingerprint(load(tmp_path, script).document_text))
    assert len(fingerprints) == 2


def test_closures_count():
    def make(title):
        return lambda row: title + row["text"]

    assert code_fingerprint(make("a")) == code_fingerprint(make("a")) != code_fingerprint(make("b"))


def test_installed_functions_are_identified_by_name():
    def document_text(row):
        return re.escape(row["text"])

    assert code_fingerprint(document_text) == code_fingerprint(document_text)
