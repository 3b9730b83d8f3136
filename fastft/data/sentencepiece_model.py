"""A SentencePiece model (tokenizer.model) as the tokenizer.json that everything else reads, proven equal id by id."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastft.errors import MachineError, Problem, Where

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
PROOFS = 1000
# What the kinds of a piece are called by number in sentencepiece_model.proto.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
_ODD = (
    "",
    " ",
    "  a",
    "a  b ",
    "\n\n\t",
    "1234567890",
    "3.14 + 2",
    "naïve café",
    "模型训练",
    "🙂👩‍👩‍👧",
    "\u200b\ufeff",
    "x" * 300,
)


def write_fast_tokenizer(original: Path, folder: Path, where: Where) -> None:
    """Write tokenizer.json and tokenizer_config.json of `original`/tokenizer.model to `folder`, beside a copy of it.

    Raises:
        MachineError: the file is missing or damaged, or some text gets other ids than SentencePiece gives it.
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    file = original / "tokenizer.model"
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        content = file.read_bytes()
        proto.ParseFromString(content)
        processor = SentencePieceProcessor(model_proto=content)
    except Exception as error:  # protobuf raises its own kinds
        wrong = f"{file} cannot be read: {' '.join(str(error).split())[:200]}"
        raise MachineError(Problem(where, "model.id", wrong, "fetch the model again")) from error
    tokenizer = _as_fast(proto)
    for text in proof_texts([piece.piece for piece in proto.pieces]):
        ids, own = tokenizer.encode(text, add_special_tokens=False).ids, processor.EncodeAsIds(text)
        if ids != own:
            wrong = f"{text[:40]!r} would get the tokens {ids[:8]}, SentencePiece gives {own[:8]}"
            raise MachineError(Problem(where, "model.id", wrong, "use another base: its tokenizer cannot be converted"))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").write_bytes(content)
    settings = json.dumps(_settings(original, proto), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")


def _as_fast(proto: Any) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

    pieces, spec = list(proto.pieces), proto.normalizer_spec
    unknown = next((piece.piece for piece in pieces if piece.type == UNKNOWN), None)
    if proto.trainer_spec.model_type == 1:
        scored = [(piece.piece, piece.score) for piece in pieces]
        tokenizer = Tokenizer(models.Unigram(scored, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))
    else:
        vocabulary = {piece.piece: number for number, piece in enumerate(pieces)}
        byte_fallback = proto.trainer_spec.byte_fallback
        merges = _merges(pieces, vocabulary)
        tokenizer = Tokenizer(
            models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
        )
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(left=True, right=True)]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    undo: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, *([decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else [])])
    for piece in pieces:
        if piece.type in (UNKNOWN, CONTROL, USER_DEFINED):
            # User-defined pieces are control tokens of a chat (<reserved_106>) or plain text (runs of spaces).
            special = piece.type != USER_DEFINED or (piece.piece[:1], piece.piece[-1:]) == ("<", ">")
            tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=special)])
    return tokenizer


def _merges(pieces: list[Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others: SentencePiece merges what makes the piece of the highest score."""
    found = []
    for piece in pieces:
        text = piece.piece
        if piece.type == 1:
            cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
            found += [(-piece.score, left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
    found.sort(key=lambda one: one[0])
    return [(left, right) for _, left, right in found]


def proof_texts(pieces: list[str]) -> Iterator[str]:
    """Texts that cover the vocabulary: runs of its own pieces, seeded, and odd ones; no control token in any."""
    yield from _ODD
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    usable = [text for piece in pieces if "<" not in (text := piece.replace(SPACE, " "))]
    for _ in range(PROOFS - len(_ODD)):
        yield "".join(chance.choices(usable, k=chance.randint(1, 12)))


def _settings(original: Path, proto: Any) -> dict[str, Any]:
    """tokenizer_config.json: the control tokens as the model's own file names them, without its Python class."""
    try:
        own = json.loads((original / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        own = {}
    pieces, spec = proto.pieces, proto.trainer_spec
    known = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "unk_token": spec.unk_id, "pad_token": spec.pad_id}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, number in known.items():
        token = own.get(name) or (pieces[number].piece if 0 <= number < len(pieces) else None)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            settings[name] = token
    for key in ("model_max_length", "chat_template"):
        if key in own:
            settings[key] = own[key]
    return settings
