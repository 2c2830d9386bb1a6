"""What a reward model's tokenizer loses of text written by another tokenizer: reported, never silent.

What a tokenizer reads is what decoding its ids gives back. Apart from white space, and after the normalisation that it
declares (lower case, accents, Unicode forms), that must be the text. Unknown tokens are where it is not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.data.decoding import decode_after, decode_exactly
from rlhf_lightning.data.messages import Text

Ids = list[int]
Loss = tuple[str, str] | None

log = logging.getLogger(__name__)

SHOWN = 16  # characters of a text shown in a message
# What a normaliser does to them, in words.
DECLARED = {"A": "lower-cases texts", "\N{LATIN SMALL LETTER E WITH ACUTE}": "removes accents"}


class LostText:
    """Counts the rows that a tokenizer cannot read faithfully, and warns about the first ones.

    Args:
        key: the setting that names the model.
        name: the model that it names.
        tokenizer: the reward model's.
    """

    def __init__(self, key: str, name: str, tokenizer: Any) -> None:
        self.key, self.name, self.tokenizer = key, name, tokenizer
        self.read = self.lost = 0

    def watch(self, prompts: Sequence[Text], responses: Sequence[str], rows: Sequence[tuple[Ids, Ids]]) -> None:
        """Compare prompts and responses with the ids made from them; an EOS or an end of turn may follow."""
        if not self.read:
            self._say_what_is_declared()
        losses = [
            self._of_prompt(prompt, *ids) or self._of_response(response, *ids)
            for prompt, response, ids in zip(prompts, responses, rows, strict=True)
        ]
        found = [loss for loss in losses if loss is not None]
        self.read += len(losses)
        if found and not self.lost:
            log.warning(
                "%s: the tokenizer of %s cannot read %d of %d rows as they are, such as %r, which it reads "
                "as %r; the lost text does not count in their scores. This is reported once; if there are many, "
                "choose a reward model whose tokenizer knows what the policy writes",
                *(self.key, self.name, len(found), len(losses), *found[0]),
            )
        self.lost += len(found)

    def _of_prompt(self, prompt: Text, ids: Ids, _: Ids) -> Loss:
        tokenizer = self.tokenizer
        if isinstance(prompt, str):
            has_bos = ids[:1] == [tokenizer.bos_token_id] and not prompt.startswith(tokenizer.bos_token)
            return self._loss(prompt, decode_exactly(tokenizer, ids[has_bos:]))
        if tokenizer.unk_token_id not in ids or tokenizer.unk_token_id == tokenizer.eos_token_id:
            return None  # other omissions in a conversation may be its template's doing
        contents = [str(message["content"]) for message in prompt]
        read = [decode_exactly(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in contents]
        return next(filter(None, map(self._loss, contents, read)), None)

    def _of_response(self, response: str, prompt: Ids, ids: Ids) -> Loss:
        return self._loss(response, decode_after(self.tokenizer, prompt, ids))

    def _loss(self, text: str, read_as: str) -> Loss:
        """Return where a text and what is read of it diverge; None if nothing is lost."""
        written, read = self._plain(text), self._plain(read_as)
        if read.startswith(written):
            return None
        same = next((i for i, (a, b) in enumerate(zip(written, read, strict=False)) if a != b), len(read))
        return written[same : same + SHOWN], read[same : same + SHOWN]

    def _plain(self, text: str) -> str:
        """Return the text as the tokenizer normalises it, without white space and EOS."""
        text = self._normalized(text.replace(self.tokenizer.eos_token or "", ""))
        # WordPiece's decoder writes "don't" for "do not"; SentencePiece's space is a normalisation of it.
        return "".join(text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").split()).replace("donot", "don't")

    def _normalized(self, text: str) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        normalizer = getattr(backend, "normalizer", None)
        if normalizer is not None:
            return str(normalizer.normalize_str(text))
        return text.lower() if getattr(self.tokenizer, "do_lower_case", False) else text

    def _say_what_is_declared(self) -> None:
        changes = [words for character, words in DECLARED.items() if character not in self._normalized(character)]
        if changes:
            log.warning(
                "%s: the tokenizer of %s %s, so its scores do not depend on that, whatever the policy writes",
                *(self.key, self.name, " and ".join(changes)),
            )
