"""Chat templates and tokenizers that bite, built from nothing: no file, no network."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

#: As ChatML; tools in the system turn; thinking is taken out of every answer but the last one after a user's turn.
THINKING = """\
{%- if tools %}<|start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|end|>
{% endif %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and not loop.last and '</think>' in content %}
{%- set content = content.split('</think>')[-1].lstrip() %}
{%- endif %}<|start|>{{ message.role }}
{{ content }}
{%- for call in message.tool_calls or [] %}
<call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</call>
{%- endfor %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% endif %}"""

#: No control token between prompt and answer: a blank that belongs to the answer's first token.
BLANK = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""

#: Knows users alone, and trims what is said, as several do.
NO_SYSTEM = """\
{% for message in messages %}
{%- if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{{- '<|start|>' + message.role + '\\n' + message.content | trim + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"""

#: Says what day it is.
CLOCK = "{{ strftime_now('%d %b %Y') }}" + THINKING

TEMPLATES = {"thinking": THINKING, "blank": BLANK, "no_system": NO_SYSTEM}

_CORPUS = ["assistant: yes", "so yes is yes and yes and yes", "user: is the sky blue", "hello hello\n\n\n"] * 3


def byte_pairs(template: str | None) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer whose merges reach over blanks and line ends."""
    made = Tokenizer(models.BPE())
    # No split into words: every two neighbours may merge, also those on either side of a boundary.
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return _wrapped(made, template)


def pieces(template: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer that marks blanks and adds one in front, like SentencePiece, with bytes for what it lacks."""
    known = ["▁", "▁yes", "▁no", "yes", "no", "▁the", "assistant", "user", "system", *"abcdefghijklmnopqrstuvwxyz:\n"]
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *known]
    made = Tokenizer(models.Unigram([(word, -float(len(word) < 2)) for word in vocabulary], 0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="first"), decoders.Fuse()]
    )
    return _wrapped(made, template)


def words(template: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer that forgets: blanks, and words that it does not know."""
    known = ["<unk>", "assistant:", "user:", "yes", "no", "the", "sky", "is", "blue"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(made, template)


def strict(template: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer that raises at what it does not know."""
    made = Tokenizer(models.Unigram([(letter, -1.0) for letter in "aeinorstuy :\n"], None))
    made.decoder = decoders.Fuse()
    return _wrapped(made, template)


TOKENIZERS = {"byte_pairs": byte_pairs, "pieces": pieces, "words": words, "strict": strict}


def _wrapped(made: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<|start|>", "<|end|>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    tokenizer.chat_template = template
    return tokenizer
