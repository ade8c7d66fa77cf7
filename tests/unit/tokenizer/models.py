"""Small byte pair models of every kind, for comparing the C++ encoder with sentencepiece."""

import functools
import io
import random

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb2

from tests.unit.tokenizer.samples import LINES, train_model

Type = pb2.ModelProto.SentencePiece
SYMBOLS = ["[sep]", "[sep]]", "发热", "a b", "\u2581\u2581", "é", "°"]


def train_bpe(**options) -> bytes:
    """A byte pair model with sentencepiece's own defaults, NFKC among them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=options.pop("vocab_size", 350),
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def edit(model: bytes, change) -> bytes:
    """The model after `change(proto)`."""
    proto = pb2.ModelProto.FromString(model)
    change(proto)
    return proto.SerializeToString()


def level_scores(proto) -> None:
    """Pieces of two and more characters share three scores."""
    for number, piece in enumerate(proto.pieces):
        if piece.type == Type.NORMAL and len(piece.piece) > 1:
            piece.score = float(number % 3)


def grow(proto) -> None:
    """70,000 pieces, those in use the last ones."""
    used = [piece for piece in proto.pieces if piece.type == Type.NORMAL]
    kept = [piece for piece in proto.pieces if piece.type != Type.NORMAL]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    for number in range(70_000 - len(kept) - len(used)):
        proto.pieces.add(piece=f"\u3400{number}", score=-1e6 - number)
    proto.pieces.extend(used)


def random_model(random_: random.Random, alphabet: str, **normalizer) -> bytes:
    """A vocabulary that no training gives: merges that block one another, equal scores, holes."""
    proto = pb2.ModelProto()
    proto.trainer_spec.model_type = pb2.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = random_.random() < 0.5
    for name, value in normalizer.items():
        setattr(proto.normalizer_spec, name, value)
    proto.pieces.add(piece="<unk>", type=Type.UNKNOWN)
    proto.pieces.add(piece="<s>", type=Type.CONTROL)
    proto.pieces.add(piece="</s>", type=Type.CONTROL)
    if proto.trainer_spec.byte_fallback:
        for byte in range(256):
            proto.pieces.add(piece=f"<0x{byte:02X}>", type=Type.BYTE)
    lengths = [1, 2, 2, 2, 3, 3, 4, 5, 6, 9]
    texts = {
        "".join(random_.choices(alphabet, k=random_.choice(lengths)))
        for _ in range(random_.randint(1, 80))
    }
    num_scores = random_.choice([1, 3, 1000])
    for text in sorted(texts):
        kind = Type.USER_DEFINED if random_.random() < 0.03 else Type.NORMAL
        proto.pieces.add(piece=text, score=random_.randrange(num_scores) - 5.0, type=kind)
    return proto.SerializeToString()


@functools.cache
def odd_models() -> dict[str, bytes]:
    """One model of each make that the C++ path takes."""
    llama_like = train_model()
    return {
        "llama": llama_like,
        "nmt_nfkc": train_bpe(),
        "nfkc_cf": train_bpe(normalization_rule_name="nfkc_cf", byte_fallback=True, vocab_size=600),
        "extra_spaces": train_bpe(remove_extra_whitespaces=False),
        "symbols": train_bpe(user_defined_symbols=SYMBOLS),
        "suffix": train_bpe(treat_whitespace_as_suffix=True),
        "bare": train_bpe(add_dummy_prefix=False, normalization_rule_name="identity"),
        "equal_scores": edit(llama_like, level_scores),
        "large": edit(llama_like, grow),
        "unescaped": edit(
            llama_like, lambda proto: setattr(proto.normalizer_spec, "escape_whitespaces", False)
        ),
    }
