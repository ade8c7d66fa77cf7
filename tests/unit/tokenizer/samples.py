"""Texts and small tokenizers shared by the tests of tokenizer, data and tools."""

import io

import sentencepiece

from megatron_chimed.tokenizer import bpe_training as training

LINES = (
    "发热是机体在致热原作用下体温调节中枢的调定点上移而引起的调节性体温升高。",
    "患者男，35岁，因“发热伴咳嗽3天”入院，体温38.5℃。",
    "阿莫西林胶囊 0.5g 口服，每日三次，疗程 7 天。",
    "The patient had a fever of 38.5 degrees and a dry cough for three days.",
    "血压 120/80 mmHg，心率 92 次/分，血氧饱和度 98%。",
)

TEXTS = (
    "",
    " ",
    "发热",
    " 发热",
    "   三个空格",
    "a  b   c",
    "尾随  ",
    "换行\n\n制表\t\r\n",
    "体温 38.5℃，0.5 g × 3",
    "未登录字：龘靐",
    "😀👍🏽",
    "</s> 是文本，<s> 和 <unk> 也是",
)


def train_model(vocab_size: int = 400) -> bytes:
    """A BPE model with byte fallback on `LINES`, as train_tokenizer makes it."""
    return training.train_model(LINES, vocab_size=vocab_size, character_coverage=1.0)


def train_unigram_model(**options: object) -> bytes:
    """A unigram model with sentencepiece's default normalisation and no byte fallback."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 150, **options},
    )
    return model.getvalue()
