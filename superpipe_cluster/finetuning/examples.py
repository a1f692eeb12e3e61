"""Examples: rows as tokens, and which of these the loss is about.

Owns the kinds of rows and how each is written down for the model. Turns go through the tokenizer's own chat template.
What an example's tokens are together with others in a batch is `sequences`'.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpipe_cluster.errors import BadInput, FileMissing, first_line
from superpipe_cluster.finetuning.rows import Row, read_rows
from superpipe_cluster.language_models import Tokenizer
from superpipe_cluster.spec import ExamplesSection
from superpipe_cluster.spec.files import expand_patterns
from superpipe_cluster.spec.kinds.finetune import COLUMNS_OF_ROWS

#: What marks assistant turns in a chat template, for `return_assistant_tokens_mask`.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
#: The prompt that Stanford Alpaca was trained with, for tokenizers without a chat template.
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{context}### Response:\n"
)
#: Who speaks in ShareGPT's rows, in the words of chat templates.
_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system", "tool": "tool",
}  # fmt: skip
_ALPACA_PAIRED = ", paired with an input that provides further context"

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """The tokens of a row, or of a part of a text.

    Attributes:
        row: number of the row.
        tokens: all of them.
        trained: which of them the loss is about; never the first, which nothing comes before.
    """

    row: int
    tokens: Sequence[int]
    trained: Sequence[bool]


def read_examples(
    section: ExamplesSection, patterns: Sequence[str], tokenizer: Tokenizer, longest: int
) -> Iterator[Example]:
    """The examples in files, none longer than `longest` tokens, and none without anything to train on.

    Raises:
        FileMissing: a file is not there or cannot be read.
        BadInput: a row is not what it should be, or too long; the message names its file.
    """
    writer = _Writer(section, tokenizer)
    for number, row in enumerate(read_rows(expand_patterns(patterns), section.format)):
        for tokens, trained in writer.write(row, longest):
            trained[:1] = [False] * len(trained[:1])
            if any(trained):
                yield Example(number, tokens, trained)


Written = tuple[list[int], list[bool]]


class _Writer:
    """Writes rows down as tokens, as one section asks for it."""

    def __init__(self, section: ExamplesSection, tokenizer: Tokenizer) -> None:
        self._section = section
        self._tokenizer = tokenizer
        self._pretrained = tokenizer.pretrained
        if section.chat_template is not None:
            self._use_template(Path(section.chat_template))
        self._template: str | None = getattr(self._pretrained, "chat_template", None)
        self._begin: list[int] = []
        if self._pretrained is not None:  # whether texts of this tokenizer begin with a token of their own
            begin = self._pretrained.bos_token_id
            self._begin = [begin] if self._pretrained("a")["input_ids"][:1] == [begin] else []

    def _use_template(self, path: Path) -> None:
        if self._pretrained is None:
            raise BadInput(
                "data.chat_template: a tokenizer of bytes has no turns",
                hint="name a model with a tokenizer, or leave it out",
            )
        try:
            self._pretrained.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileMissing(
                f"data.chat_template: cannot read {path}: {first_line(error)}", hint="name a Jinja file"
            ) from error

    def write(self, row: Row, longest: int) -> Iterator[Written]:
        """The examples of a row: several pieces of a long text, else one, or none if it is too long and skipped."""
        kind = self._section.rows if self._section.rows != "auto" else self._kind_of(row)
        if kind == "text":
            tokens = [*self._begin, *self._tokenizer.encode(self._text(row, "text")), self._end]
            for start in range(0, len(tokens), longest):
                piece = tokens[start : start + longest]
                yield piece, [True] * len(piece)
            return
        writers: dict[str, Callable[[Row], Written]] = {
            "prompt": self._write_prompt, "alpaca": self._write_alpaca, "messages": self._write_chat,
            "sharegpt": self._write_sharegpt,
        }  # fmt: skip
        tokens, trained = writers[kind](row)
        if len(tokens) > longest:
            if self._section.too_long == "skip":
                return
            if self._section.too_long == "refuse":
                raise BadInput(
                    f"{row.where}: {len(tokens)} tokens are more than finetune.sequence_length {longest}",
                    hint="use longer sequences, or write data: {too_long: cut} (or skip)",
                )
        yield tokens[:longest], trained[:longest]

    # ---- what a row is -----------------------------------------------------------------------------------

    def _kind_of(self, row: Row) -> str:
        for kind, names in COLUMNS_OF_ROWS.items():
            if all(row.columns.get(self._named(name)) is not None for name in names):
                return kind
        known = "; ".join(" and ".join(names) for names in COLUMNS_OF_ROWS.values())
        raise BadInput(
            f"{row.where}: the columns {', '.join(row.columns)} are none of {known}",
            hint="say which is which: data: {columns: {prompt: YOUR_COLUMN, completion: ANOTHER}}",
        )

    def _named(self, column: str) -> str:
        return self._section.columns.get(column, column)

    def _value(self, row: Row, column: str) -> Any:
        name = self._named(column)
        if row.columns.get(name) is None:
            raise BadInput(
                f"{row.where}: nothing in the column {name!r}; there are {', '.join(row.columns)}",
                hint=f"name the column in data: {{columns: {{{column}: ...}}}}, or choose other data.rows",
            )
        return row.columns[name]

    def _text(self, row: Row, column: str) -> str:
        value = self._value(row, column)
        if not isinstance(value, str):
            raise BadInput(
                f"{row.where}: the column {self._named(column)!r} holds a {type(value).__name__}, not a text",
                hint="give texts; a conversation is a list of {role, content} in the column `messages`",
            )
        return value

    # ---- writing it down ---------------------------------------------------------------------------------

    @property
    def _end(self) -> int:
        return self._tokenizer.eos_token_id

    @property
    def _trains_all(self) -> bool:
        return self._section.train_on == "all"

    def _write_prompt(self, row: Row) -> Written:
        return self._instruct(row, self._text(row, "prompt"), None, self._text(row, "completion"))

    def _write_alpaca(self, row: Row) -> Written:
        instruction, output = self._text(row, "instruction"), self._text(row, "output")
        context = row.columns.get(self._named("input")) or ""
        asked = f"{instruction}\n\n{context}" if context else instruction
        prompt = _ALPACA.format(
            paired=_ALPACA_PAIRED if context else "",
            instruction=instruction,
            context=f"### Input:\n{context}\n\n" if context else "",
        )
        return self._instruct(row, prompt, asked, output)

    def _instruct(self, row: Row, prompt: str, asked: str | None, completion: str) -> Written:
        if self._section.as_chat and self._template is not None:
            asked = prompt if asked is None else asked
            return self._converse(
                row,
                [{"role": "user", "content": asked}, {"role": "assistant", "content": completion}],
            )
        # Apart, as they will be met: the prompt's tokens do not depend on what comes after it.
        before = [*self._begin, *self._tokenizer.encode(prompt)]
        after = [*self._tokenizer.encode(completion), self._end]
        return before + after, [self._trains_all] * len(before) + [True] * len(after)

    def _write_chat(self, row: Row) -> Written:
        return self._converse(row, self._turns(row, "messages"))

    def _write_sharegpt(self, row: Row) -> Written:
        turns = self._turns(row, "conversations")
        system = row.columns.get(self._named("system"))
        return self._converse(row, [{"role": "system", "content": system}, *turns] if system else turns)

    def _turns(self, row: Row, column: str) -> list[Message]:
        """A conversation, each turn of it in the one form or the other."""
        said = self._value(row, column)
        if not isinstance(said, list):
            raise BadInput(
                f"{row.where}: the column {self._named(column)!r} is no conversation",
                hint="it is a list of {role: user, content: ...} and {role: assistant, content: ...}, or of "
                "{from: human, value: ...} and {from: gpt, value: ...}",
            )
        return [self._turn(f"{row.where}: turn {number}", one) for number, one in enumerate(said, start=1)]

    def _turn(self, where: str, turn: Any) -> Message:
        # Columns of a table are filled up with nulls: what is not there is not said.
        columns = turn if isinstance(turn, dict) else {}
        said = {name: value for name, value in columns.items() if value is not None}
        if "role" in said:
            return said
        if not isinstance(said.get("from"), str) or not isinstance(said.get("value"), str):
            raise BadInput(
                f"{where} does not say who speaks, and what: it has {', '.join(said) or 'nothing'}",
                hint="a turn is {role: user, content: ...}, or {from: human, value: ...}, with texts",
            )
        if said["from"] not in _SPEAKERS:
            raise BadInput(
                f"{where} is from {said['from']!r}, and nobody is called so",
                hint=f"turns are from {', '.join(_SPEAKERS)}",
            )
        return {"role": _SPEAKERS[said["from"]], "content": said["value"]}

    def _converse(self, row: Row, messages: Sequence[Message]) -> Written:
        if self._template is None:
            raise BadInput(
                f"{row.where}: a conversation, and the tokenizer has no chat template",
                hint="name a model whose tokenizer has one, or a Jinja file in data: {chat_template: chat.jinja}",
            )
        tools = row.columns.get(self._named("tools"))
        try:
            if self._trains_all or not _GENERATION.search(self._template):
                return self._by_prefixes(row, messages, tools)
            written = self._pretrained.apply_chat_template(
                list(messages), tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
        except BadInput:
            raise
        except Exception as error:  # whatever a template raises
            raise BadInput(
                f"{row.where}: the chat template does not take it: {first_line(error)}",
                hint="check the roles and their order, or give another template in data.chat_template",
            ) from error
        return list(written["input_ids"]), [bool(one) for one in written["assistant_masks"]]

    def _by_prefixes(self, row: Row, messages: Sequence[Message], tools: Any) -> Written:
        """Assistant turns are what each of them adds to the text before it."""

        def text_of(count: int, *, prompts: bool = False) -> str:
            return self._pretrained.apply_chat_template(
                list(messages[:count]), tools=tools, tokenize=False, add_generation_prompt=prompts
            )

        whole = text_of(len(messages))
        found = self._pretrained(whole, add_special_tokens=False, return_offsets_mapping=True)
        tokens, starts = list(found["input_ids"]), [start for start, _ in found["offset_mapping"]]
        if self._trains_all:
            return tokens, [True] * len(tokens)
        edges: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = text_of(number, prompts=True), text_of(number + 1)
            if not (after.startswith(before) and whole.startswith(after)):
                raise BadInput(
                    f"{row.where}: the chat template writes turns differently once others follow, so its assistant "
                    "turns cannot be found",
                    hint="mark them with {% generation %} in a data.chat_template, or write data: {train_on: all}",
                )
            edges += [len(before), len(after)]
        # Between an odd and the next even edge a turn of the assistant's goes on.
        return tokens, [bisect_right(edges, start) % 2 == 1 for start in starts]
