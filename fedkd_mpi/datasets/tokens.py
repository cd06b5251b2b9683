"""Conversion of text to token ids: by WordPiece trained on the texts, or by the tokenizer in a local folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.datasets import Dataset, expanded, read_file
from fedkd_mpi.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

PAD, UNKNOWN, START, END = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TRAINED = "trained"  # instead of a fingerprint, for tokenizers that were trained on the data
TOKENIZER = "tokenizer"  # the table with the tokenizer itself, which checkpoints keep for exported networks
BLANK = 16  # tokens per blank text
CHARACTERS = 1000  # most frequent characters, which get a token; words with other characters are unknown


@dataclass(frozen=True)
class Tokens:
    """The settings of the tokenizer, from the keys of `data`.

    `tokenizer` is a folder with tokenizer.json or vocab.txt; without one, WordPiece of `vocabulary` tokens is trained.
    `length` is the number of tokens of a text including its two marks; `lowercase` applies to a trained tokenizer and
    to vocab.txt.
    """

    tokenizer: str | None
    vocabulary: int
    length: int
    lowercase: bool

    def fit(self, texts: Sequence[str]) -> Encoder:
        """Return the encoder, trained on `texts` if no folder is named; raises UserError."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # ranks share the cores
        try:
            import tokenizers  # noqa: F401
        except ImportError as error:
            raise UserError(f"texts need the tokenizers library ({error}): pip install 'fedkd-mpi[text]'") from None
        tokenizer = _train(texts, self) if self.tokenizer is None else _load(Path(self.tokenizer), self.lowercase)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.length)
        return Encoder(tokenizer, self.length, TRAINED if self.tokenizer is None else _digest(tokenizer))


class Encoder:
    """Converts texts to rows of token ids; `meta` describes them for a task."""

    def __init__(self, tokenizer: Tokenizer, length: int, name: str):
        self._tokenizer, self.length, self._name = tokenizer, length, name
        pads = [tokenizer.token_to_id(name) for name in (PAD, "<pad>")]
        self.pad = next((pad for pad in pads if pad is not None), None)
        if self.pad is None:
            raise UserError(f"data.tokenizer: the tokenizer has neither {PAD} nor <pad>")

    @property
    def meta(self) -> dict[str, Any]:
        """The size of the vocabulary, the length of texts, the padding id, and the fingerprint of the tokenizer.

        Ids are at most "vocabulary" - 1, not all of which need be tokens. "tokenizer" is a fingerprint or TRAINED.
        """
        tokens = 1 + max(self._tokenizer.get_vocab().values())
        return {"vocabulary": tokens, "length": self.length, "pad": self.pad, "tokenizer": self._name}

    @property
    def table(self) -> dict[str, np.ndarray]:
        """The tokenizer itself as a table of a Dataset: "tokenizer" uint8, its JSON in UTF-8."""
        return {TOKENIZER: np.frombuffer(self._tokenizer.to_str().encode(), np.uint8)}

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Return the encodings of the library: ids, and the word and the characters of every token."""
        return self._tokenizer.encode_batch(list(texts))

    def rows(self, encodings: Sequence[Encoding]) -> np.ndarray:
        """Return token ids int32 [n, length], padded."""
        rows = np.full((len(encodings), self.length), self.pad, np.int32)
        for row, encoding in zip(rows, encodings, strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return rows


def read_text(path: Path) -> str:
    """Return the text of a file; raise UserError naming file and line if it is empty or not UTF-8."""
    raw = read_file(path)
    if not raw:
        raise UserError(f"{path}: empty; fetch it again")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({error.reason}); fetch it again") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) without blank lines; raises UserError as read_text() does."""
    lines = ((number, line.removesuffix("\r")) for number, line in enumerate(read_text(path).split("\n"), 1))
    found = False
    for number, line in lines:
        if line:
            found = True
            yield number, line
    if not found:
        raise UserError(f"{path}: no line but blank ones; fetch it again")


def _train(texts: Sequence[str], tokens: Tokens) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    normalizer = normalizers.BertNormalizer(lowercase=tokens.lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:CHARACTERS]
    # The library numbers characters in the order of a randomly seeded hash map and breaks ties by number. As special
    # tokens they are numbered here, so that the vocabulary is the same in every run.
    fixed = [*SPECIAL, *kept, *(f"##{character}" for character in kept)]
    if len(fixed) > tokens.vocabulary:
        raise UserError(f"data.vocabulary={tokens.vocabulary}: the characters of these texts alone need {len(fixed)}")
    trained = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trained.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=tokens.vocabulary, special_tokens=fixed, limit_alphabet=CHARACTERS, show_progress=False
        ),
    )
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    marks = [(name, tokenizer.token_to_id(name)) for name in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=marks)
    return tokenizer


def fingerprint(folder: Path) -> str:
    """Return the fingerprint of the tokenizer in a local folder, which identifies its tokens; raises UserError."""
    return _digest(_load(folder, lowercase=True))


def _digest(tokenizer: Tokenizer) -> str:
    tokens = sorted(tokenizer.get_vocab().items(), key=itemgetter(1))
    return hashlib.sha256(repr(tokens).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _load(folder: Path, lowercase: bool) -> Tokenizer:
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    folder = expanded(folder)
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if whole.is_file():
            return Tokenizer.from_file(str(whole))
        if vocabulary.is_file():
            return BertWordPieceTokenizer.from_file(str(vocabulary), lowercase=lowercase)
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"data.tokenizer={folder}: {' '.join(str(error).split())}") from None
    raise UserError(f"data.tokenizer={folder} has neither tokenizer.json nor vocab.txt; nothing is downloaded")


def blank_texts(
    train: int, test: int, vocabulary: int, length: int, classes: Sequence[str], tokenizer: str | None = None
) -> Dataset:
    """Return blank texts with the classes in turn; they take no memory."""
    meta = blank_meta(vocabulary, length, tokenizer)
    train_part, test_part = (
        {"ids": blank_rows(count, length, meta["pad"]), "y": np.arange(count, dtype=np.int64) % len(classes)}
        for count in (train, test)
    )
    return Dataset(train_part, test_part, {"classes": list(classes), **meta})


def blank_meta(vocabulary: int, length: int, tokenizer: str | None) -> dict[str, Any]:
    """Return the meta of blank texts, that of the tokenizer if a folder is named; raises UserError."""
    if tokenizer is None:
        return {"vocabulary": vocabulary, "length": length, "pad": 0, "tokenizer": TRAINED}
    return Tokens(tokenizer, vocabulary, length, lowercase=True).fit([]).meta


def blank_rows(count: int, length: int, pad: int) -> np.ndarray:
    """Return int32 [count, length]: equal rows of BLANK tokens followed by padding."""
    row = np.full(length, pad, np.int32)
    row[:BLANK] = int(pad == 0)
    return np.broadcast_to(row, (count, length))
