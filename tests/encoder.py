"""A tiny encoder with a word-piece tokenizer and learnable data, made on the spot."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
GOOD, BAD, NAMES = ("fine", "great"), ("dull", "awful"), ("rome", "paris")
PIECES = ["a", "film", "in", "walk", "##ing", "##s", *GOOD, *BAD, *NAMES]


def save_encoder(directory: Path, seed: int = 0) -> Path:
    """A BERT of two layers for 32 tokens, and its tokenizer ("walkings" has three pieces)."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(directory)
    torch.manual_seed(seed)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
            initializer_range=0.2,
        )
    ).save_pretrained(directory)
    return directory


def examples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences with a sentiment, a second text with the same one or not, and tags for cities."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label, second = draw.choice(("bad", "good")), draw.choice(("bad", "good"))
        words = ["a", draw.choice(GOOD if label == "good" else BAD), "film", "in"]
        words += [draw.choice(NAMES)] + ["walking"] * draw.randint(0, 4)
        tags = ["B-city" if word in NAMES else "O" for word in words]
        rows.append(
            {
                "text": " ".join(words),
                "text_pair": draw.choice(GOOD if second == "good" else BAD),
                "label": label,
                "same": "same" if label == second else "different",
                "tokens": words,
                "tags": tags,
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Lists become text with a space between the words."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: " ".join(v) if isinstance(v, list) else v for k, v in row.items()})
    return path
