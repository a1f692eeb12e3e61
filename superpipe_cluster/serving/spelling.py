"""From tokens, one by one, to text that can be shown: whole characters, cut where a stop string begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: What decoders write for bytes that are no character, or not yet.
_UNFINISHED = "\ufffd"


class Speller:
    """The text of one answer. All pieces together are the text of all its tokens, up to the first stop string.

    Args:
        decode: the tokenizer's.
        stops: texts before which the answer ends.

    Attributes:
        stopped: whether a stop string has come.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._tokens: list[int] = []
        # A token's text may depend on the one before it (spaces): two marks, what is shown and from where to decode.
        self._from = self._shown = 0
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be shown once `token` has come; empty while a character or a stop string may be under way."""
        self._tokens.append(token)
        return self._new(last=False)

    def finish(self) -> str:
        """What is left to show when no token follows."""
        return "" if self.stopped else self._new(last=True)

    def _new(self, *, last: bool) -> str:
        text = self._decode(self._tokens[self._from :])
        if text.endswith(_UNFINISHED) and not last:
            return ""
        text = text[len(self._decode(self._tokens[self._from : self._shown])) :]
        self._from, self._shown = self._shown, len(self._tokens)
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
