"""YAML of others: a value, or a sentence that names the file."""

import pytest

from aloe_core.errors import LONGEST, AloeError
from aloe_core.yaml_file import VALUES, parse_yaml, read_yaml

LEVELS = ", ".join(f"&a{k} [{', '.join([f'*a{k - 1}'] * 9) if k else 'x, x'}]" for k in range(9))


def test_a_document(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x {b: [1, 2.5, null]}\nc: *x\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 2.5, None]}, "c": {"b": [1, 2.5, None]}}


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "x: 2020-13-45",
        '!!int ""',
        "!!bool x",
        "!!timestamp x",
        "[" * 3000,
        "!!python/object/apply:os.system [ls]",
        "a: 1\n---\n",
    ],
)
def test_what_is_no_document_is_named(text):
    with pytest.raises(AloeError, match="here: not a readable YAML file"):
        parse_yaml(text, "here")


@pytest.mark.parametrize("text", [f"[{LEVELS}]", "&a [*a]", "&a {b: *a}"])
def test_references_do_not_multiply_without_end(text):
    with pytest.raises(AloeError, match=f"stand for more than {VALUES} values"):
        parse_yaml(text, "here")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(AloeError, match=r"none\.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"a: \xff")
    with pytest.raises(AloeError, match=r"b\.yaml: not a readable YAML file"):
        read_yaml(tmp_path / "b.yaml")


def test_a_sentence_stays_one():
    assert len(str(AloeError("x" * 10 * LONGEST))) < LONGEST + 50
