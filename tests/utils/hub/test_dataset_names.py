"""Full names of datasets: only transformers 5 needs them, and finds them on the Hub or in the cache."""

import pytest
from conftest import set_offline

from utils.compat import TRANSFORMERS_5
from utils.hub.dataset_names import full_dataset_name


@pytest.fixture
def wikitext(hub):
    hub.add("dataset", "Salesforce/wikitext", {"a.txt": b"text\n"})
    hub.redirects |= {"wikitext": "Salesforce/wikitext"}
    return hub


def test_name_without_its_owner(wikitext):
    expected = "Salesforce/wikitext" if TRANSFORMERS_5 else "wikitext"
    assert full_dataset_name("wikitext", None, None) == expected


def test_full_names_and_folders_are_unchanged(wikitext, tmp_path, monkeypatch):
    (tmp_path / "wikitext").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("Salesforce/wikitext", "wikitext", str(tmp_path / "wikitext")):
        assert full_dataset_name(name, None, None) == name
    assert wikitext.requests == []


def test_without_a_network_the_cache_has_the_name(wikitext, tmp_path, monkeypatch):
    set_offline(monkeypatch, True)
    assert full_dataset_name("wikitext", None, str(tmp_path)) == "wikitext"
    (tmp_path / "Salesforce___wikitext").mkdir()
    expected = "Salesforce/wikitext" if TRANSFORMERS_5 else "wikitext"
    assert full_dataset_name("wikitext", None, str(tmp_path)) == expected
    (tmp_path / "another___wikitext").mkdir()
    assert full_dataset_name("wikitext", None, str(tmp_path)) == "wikitext"
