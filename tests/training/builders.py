"""A tiny Llama with a word-level tokenizer, and recorded play of a two-turn game on it."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.trainer.advantages import Scored, group_advantages
from services.trainer.rows import Row

WORDS = ["<pad>", "<end>", "<user>", "<agent>", *(f"signal{i}" for i in range(8)), *(f"act{i}" for i in range(8))]
PAD, END, USER, AGENT, SIGNAL, ACT = 0, 1, 2, 3, 4, 12
TURNS = 2


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 20 words."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """Return an untrained 2-layer Llama."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.1,
            pad_token_id=PAD, bos_token_id=None, eos_token_id=END,
        )
    )  # fmt: skip


def drifted(model: LlamaForCausalLM, scale: float = 0.02) -> LlamaForCausalLM:
    """Return a copy whose weights moved a little: a later policy than the one that played."""
    torch.manual_seed(1)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return moved


def save(model: LlamaForCausalLM, folder: Path) -> Path:
    """Write a model folder in the Hugging Face layout."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def sample(model: LlamaForCausalLM, prompt: list[int], length: int) -> tuple[list[int], list[float]]:
    """Sample ``length`` tokens one by one, without a cache or padding; return them with their log-probabilities."""
    tokens, logprobs = list(prompt), []
    for _ in range(length):
        logp = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
        tokens.append(int(torch.multinomial(logp.exp(), 1)))
        logprobs.append(logp[tokens[-1]].item())
    return tokens[len(prompt) :], logprobs


def recorded_rows(model: LlamaForCausalLM, sizes: Sequence[int], seed: int = 0) -> list[Row]:
    """Play groups of the given sizes; rewards are arbitrary but reproducible. Rows have several lengths."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    model.eval()
    rows, scored = [], {}
    for group, size in enumerate(sizes):
        for member in range(size):
            row = Row(f"{group}-{member}")
            for turn in range(TURNS + group % 2):
                context = [USER, SIGNAL + (group + turn) % 8, AGENT][: 2 + group % 2] if turn else [USER, SIGNAL, AGENT]
                row.tokens += context
                row.sampled += [0] * len(context)
                row.logprobs += [0.0] * len(context)
                completion, logprobs = sample(model, row.tokens, 1 + member % 3)
                row.tokens += completion
                row.sampled += [1] * len(completion)
                row.logprobs += logprobs
            row.versions = [1] * len(row.tokens)
            rows.append(row)
            scored[row.trajectory_id] = Scored(str(group), chance.random())
    advantages, _ = group_advantages(scored)
    for row in rows:
        row.advantage = advantages[row.trajectory_id]
    return rows


def supervised_rows(model: LlamaForCausalLM, count: int, seed: int = 5) -> list[Row]:
    """Play without log-probabilities that was rewarded above the rest, of several lengths."""
    rows = recorded_rows(model, [count], seed)
    for number, row in enumerate(rows):
        row.trajectory_id, row.supervised, row.advantage = f"text-{number}", True, 0.5 + number
        row.logprobs = [0.0] * len(row.tokens)
    return rows
