"""Rows of every kind and format as tokens with a loss mask, and what is said of rows that are none."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from finetuning.bases import CHATML, MARKED, conversations, tokenizer, write_rows
from superpipe_cluster.errors import BadInput, FileMissing
from superpipe_cluster.finetuning.examples import Example, read_examples
from superpipe_cluster.language_models import ByteTokenizer, Tokenizer, load_tokenizer
from superpipe_cluster.spec import ExamplesSection, ModelSection

CHAT = conversations(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


def words(folder: Path, template: str | None) -> Tokenizer:
    folder = folder / str(len(template or ""))
    tokenizer(template).save_pretrained(folder)
    return load_tokenizer(ModelSection(source="none/none", tokenizer=str(folder)))


def read(path: Path, known: Tokenizer, longest: int = 999, **section: Any) -> list[Example]:
    asked = ExamplesSection(files=(str(path),), **section)
    return list(read_examples(asked, asked.files, known, longest))


def texts(known: Tokenizer, example: Example) -> tuple[str, str]:
    """All of it, and what of it is trained on."""
    trained = [token for token, mask in zip(example.tokens, example.trained, strict=True) if mask]
    decode = known.pretrained.decode if known.pretrained is not None else known.decode
    return decode(list(example.tokens)), decode(trained)


def test_turns_of_the_assistant_are_found_with_and_without_marks(folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chat.jsonl", [{"messages": [*CHAT[0]["messages"], *CHAT[2]["messages"]]}])
    known = words(folder, CHATML)
    (prefixes,) = read(path, known)
    question, answer, another, last = (
        one["content"] for row in (CHAT[0], CHAT[2]) for one in row["messages"]
    )
    whole, trained = texts(known, prefixes)
    assert trained == f"{answer}<|im_end|>\n{last}<|im_end|>\n"
    assert question in whole
    assert another in whole
    (marked,) = read(path, words(folder, MARKED))
    assert marked == prefixes
    (everything,) = read(path, known, train_on="all")
    assert everything.tokens == prefixes.tokens
    assert list(everything.trained) == [False] + [True] * (len(prefixes.tokens) - 1)


SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


def sharegpt(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"from": SPEAKERS[one["role"]], "value": one["content"]} for one in row["messages"]]


def test_chats_of_both_forms_are_the_same_examples(folder: Path, tmp_path: Path) -> None:
    brief = {"role": "system", "content": "Be brief."}
    rows = [{"messages": [brief, *row["messages"]]} for row in CHAT]
    known = words(folder, CHATML)
    expected = read(write_rows(tmp_path / "messages.jsonl", rows), known)
    assert len(expected) == len(CHAT)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in texts(known, expected[0])[0]
    forms = [
        ([{"conversations": sharegpt(row)} for row in rows], {}),
        ([{"conversations": sharegpt(row), "system": "Be brief."} for row in CHAT], {}),
        ([{"conversations": row["messages"]} for row in rows], {}),
        ([{"talk": sharegpt(row), "text": "x"} for row in rows], {"columns": {"conversations": "talk"}}),
        ([{"talk": sharegpt(row)} for row in rows], {"rows": "messages", "columns": {"messages": "talk"}}),
    ]
    datasets.disable_progress_bars()
    for number, (form, section) in enumerate(forms):
        path = write_rows(tmp_path / f"{number}.jsonl", form)
        assert read(path, known, **section) == expected, number
        datasets.Dataset.from_list(form).to_parquet(tmp_path / f"{number}.parquet")
        assert read(tmp_path / f"{number}.parquet", known, **section) == expected, number


def test_instructions_go_through_the_template_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    pair = write_rows(tmp_path / "pair.jsonl", [{"prompt": "Say a", "completion": "a"}])
    alpaca = write_rows(tmp_path / "alpaca.jsonl", [{"instruction": "Say", "input": "b", "output": "b"}])
    known = words(folder, CHATML)
    turns = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    assert texts(known, read(pair, known)[0]) == (turns.format("Say a", "a"), "a<|im_end|>\n")
    assert texts(known, read(alpaca, known)[0]) == (turns.format("Say\n\nb", "b"), "b<|im_end|>\n")
    for plain, options in ((words(folder, None), {}), (known, {"as_chat": False}), (ByteTokenizer(), {})):
        end = "" if isinstance(plain, ByteTokenizer) else "<|im_end|>"
        assert texts(plain, read(pair, plain, **options)[0]) == ("Say aa" + end, "a" + end)
        whole, trained = texts(plain, read(alpaca, plain, **options)[0])
        assert trained == "b" + end
        assert "### Instruction:\nSay\n\n### Input:\nb\n\n### Response:\n" in whole
        assert "paired with an input" in whole


def test_a_template_of_the_users_own(folder: Path, tmp_path: Path) -> None:
    known = words(folder, None)
    path = write_rows(tmp_path / "chat.jsonl", CHAT)
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    whole, trained = texts(known, read(path, known, chat_template=str(tmp_path / "chat.jinja"))[0])
    assert whole.startswith("user: What is")
    assert trained.endswith("\n")
    known.save(tmp_path / "saved")
    again = load_tokenizer(ModelSection(source="none/none", tokenizer=str(tmp_path / "saved")))
    assert "role" in again.pretrained.chat_template, "it goes with the model"
    (tmp_path / "chat.jinja").write_text("{{ messages | length }} of")
    with pytest.raises(BadInput, match="writes turns differently once others follow"):
        read(path, known, chat_template=str(tmp_path / "chat.jinja"))
    (tmp_path / "chat.jinja").write_text("{{ raise_exception('no such role') }}")
    with pytest.raises(
        BadInput, match=r"chat.jsonl, row 1: the chat template does not take it: no such role"
    ):
        read(path, known, chat_template=str(tmp_path / "chat.jinja"))


def test_the_same_rows_in_every_format(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} =", "completion": f"0{number}"} for number in range(4)]
    known = ByteTokenizer()
    expected = read(write_rows(tmp_path / "[1] rows.jsonl", rows), known)
    assert [texts(known, example)[1] for example in expected] == ["00", "01", "02", "03"]
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "list.json").write_text(json.dumps(rows))
    for name, separator in (("rows.csv", ","), ("rows.tsv", "\t"), ("rows.txt", ",")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([list(rows[0]), *(row.values() for row in rows)])
    for name in ("rows.parquet", "list.json", "rows.csv", "rows.tsv"):
        assert read(tmp_path / name, known) == expected, name
    assert read(tmp_path / "rows.txt", known, format="csv") == expected


def test_texts_are_split_and_nothing_of_them_is_lost(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij")
    (tmp_path / "b.md").write_text("  ")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    found = read(tmp_path / "*", ByteTokenizer(), 4)
    assert [bytes(token for token in one.tokens if token < 256) for one in found] == [b"abcd", b"efgh", b"ij"]
    assert found[-1].tokens[-1] == 256
    assert all(list(one.trained) == [False] + [True] * (len(one.tokens) - 1) for one in found)
    assert {one.row for one in found} == {0}
    with pytest.raises(BadInput, match=r"c\.txt is not UTF-8"):
        read(tmp_path / "c.txt", ByteTokenizer(), format="text")


def test_what_is_too_long(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * n, "completion": "b"} for n in (3, 30, 4)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        BadInput, match=r"rows\.jsonl, row 2: 32 tokens are more than finetune.sequence_length 8"
    ):
        read(path, ByteTokenizer(), 8)
    assert [one.row for one in read(path, ByteTokenizer(), 8, too_long="skip")] == [0, 2]
    assert [one.row for one in read(path, ByteTokenizer(), 8, too_long="cut")] == [0, 2], "its end is cut off"
    cut = read(path, ByteTokenizer(), 8, too_long="cut", train_on="all")
    assert [len(one.tokens) for one in cut] == [5, 8, 6]


@pytest.mark.parametrize(
    ("rows", "section", "said"),
    [
        ([{"messages": "hello"}], {}, "row 1: the column 'messages' is no conversation"),
        ([{"prompt": ["a"], "completion": "b"}], {}, "row 1: the column 'prompt' holds a list, not a text"),
        ([{"prompt": "a", "completion": None}], {"rows": "prompt"}, "row 1: nothing in the column 'completion'"),
        ([{"q": "a", "a": "b"}], {"columns": {"prompt": "Q", "completion": "a"}}, "the columns q, a are none of"),
        ([{"conversations": "hello"}], {}, "row 1: the column 'conversations' is no conversation"),
        ([{"conversations": [{"from": "bot", "value": "a"}]}], {}, "row 1: turn 1 is from 'bot', and nobody"),
        (
            [{"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}],
            {},
            "row 1: turn 2 does not say who speaks, and what: it has content",
        ),
        (
            [{"conversations": [{"from": "human", "value": 3}]}],
            {},
            "row 1: turn 1 does not say who speaks, and what: it has from, value",
        ),
        ([{"conversations": sharegpt(CHAT[0])}], {}, "row 1: a conversation, and the tokenizer"),
        (CHAT, {}, "row 1: a conversation, and the tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_what_is_no_example(rows: Any, section: Any, said: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(BadInput, match=said) as caught:
        read(path, ByteTokenizer(), **section)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_what_is_no_file_of_its_kind(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.parquet"):
        (tmp_path / name).write_text('{"prompt": 1\nno\n')
        with pytest.raises(BadInput, match=f"cannot read .*{name} as") as caught:
            read(tmp_path / name, ByteTokenizer())
        assert caught.value.hint
    with pytest.raises(FileMissing, match="no such file"):
        read(tmp_path / "nothing.jsonl", ByteTokenizer())
