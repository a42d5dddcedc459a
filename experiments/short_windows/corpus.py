"""The text: code, documents with needles made from it, and one tokenizer for both."""

import hashlib
import json
from pathlib import Path

import numpy as np

from swa_jax.configuration import to_dict
from swa_jax.data.config import DataConfig, SourceConfig
from swa_jax.data.corpus import Document, read_corpus
from swa_jax.data.needles.document import DocumentConfig, write_needle_documents
from swa_jax.data.one_move import write_in_one_move
from swa_jax.data.pipeline import TextData, load_text_data
from swa_jax.data.split import name_hash, split
from swa_jax.data.tokenizer import train_bpe
from swa_jax.training.lock import locked

from .config import Size

CODE, NEEDLES = "code", "needles"  # names of the sources
HELD_OUT = "held_out"
TOKENIZER_FILE, KEY_FILE = "tokenizer.json", "key.json"
HELD_OUT_FRACTION = 0.05  # of the documents
SEED = 0  # of the split and the needles: they are the same for all runs


def prepare(folder: Path, size: Size, /) -> None:
    """Writes what all runs read: code, held-out code, needles, and the tokenizer.

    The needles stand in the code that is not held out. Nothing is written where the
    folder has all of it already; raises ValueError where it is of another size or text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        training, held_out = _code()
        key = _key(size, training, held_out)
        written = folder / KEY_FILE
        if written.is_file():
            if written.read_text(encoding="utf-8") == key:
                return
            raise ValueError(
                f"{folder} holds another text or needles of another size; move it away"
            )
        texts = [document.text for document in training]
        configs = [
            DocumentConfig(
                config, longest=size.needles.longest, questions=size.needles.questions
            )
            for config in size.needles.kinds.values()
        ]
        count = size.needles.documents
        write_needle_documents(
            _file(folder, NEEDLES), configs, texts, count=count, seed=SEED
        )
        _write(_file(folder, CODE), texts)
        _write(_file(folder, HELD_OUT), [document.text for document in held_out])
        with _file(folder, NEEDLES).open(encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
        tokenizer = train_bpe(texts, vocab_size=size.shape.vocab_size)
        tokenizer.save(folder / TOKENIZER_FILE)
        write_in_one_move(written, key)


def training_data(folder: Path, size: Size, /) -> DataConfig:
    """The mixture that every arm is trained on."""
    share = size.training.needle_share
    weights = {CODE: 1.0 - share, NEEDLES: share}
    sources = [
        SourceConfig(str(_file(folder, name)), name=name, weight=weight)
        for name, weight in weights.items()
    ]
    return DataConfig(
        sources=tuple(sources),
        tokenizer=str(folder / TOKENIZER_FILE),
        seq_len=size.training.seq_len,
    )


def held_out_data(folder: Path, /, *, seq_len: int) -> TextData:
    """The held-out code, all but one document of it as the validation side."""
    path = _file(folder, HELD_OUT)
    documents = path.read_text(encoding="utf-8").count("\n")
    config = DataConfig(
        path=str(path),
        tokenizer=str(folder / TOKENIZER_FILE),
        validation_fraction=(documents - 1.5) / documents,  # rounded up to whole ones
        seq_len=seq_len,
    )
    return load_text_data(config, seed=SEED)


def _code() -> tuple[list[Document], list[Document]]:
    """The standard library's source: documents to train on, and held-out ones."""
    documents, _ = read_corpus(SourceConfig(), on_bad_record="stop")
    hashes = np.array([name_hash(document.name) for document in documents], np.uint64)
    sides = split(hashes, fraction=HELD_OUT_FRACTION, seed=SEED)
    training, held_out = ([documents[i] for i in side] for side in sides)
    return training, held_out


def _key(size: Size, *sides: list[Document]) -> str:
    """What decides every file of the folder."""
    digest = hashlib.sha256()
    for side in sides:
        for document in side:
            digest.update(document.text.encode())
    values = {"vocab_size": size.shape.vocab_size, "code": digest.hexdigest()}
    values["needles"] = to_dict(size.needles)
    return json.dumps(values, sort_keys=True)


def _file(folder: Path, source: str) -> Path:
    return folder / f"{source}.jsonl"


def _write(path: Path, texts: list[str]) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    write_in_one_move(path, "".join(lines))
