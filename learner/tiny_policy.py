"""The tiny policy's architecture, tokenizer and chat template, made from scratch.

Text is what Qwen's template writes in Hermes' format, with a terse list of tools. The tokenizer keeps
a call short: the format's fixed strings, JSON keys, words and the numbers 0-99 are one token each.
"""

import itertools
import math
import re
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from configs.sft import PolicyRecipe

PAD, END = "<|endoftext|>", "<|im_end|>"

TEMPLATE = """\
{%- if messages[0].role == 'system' or tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n' }}
    {%- endif %}
    {%- for tool in tools or [] %}
        {{- tool.function.name + '(' + (tool.function.parameters.properties or {}) | join(', ') + ')\\n' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- if message.content or not loop.first %}{{ '\\n' }}{% endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {%- if call.function.arguments is string %}
                {{- call.function.arguments }}
            {%- else %}
                {{- call.function.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif not loop.first or message.role != 'system' %}
        {{- raise_exception('unexpected role ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Strings of the template, one token each. None begins with END, so that a reply's end stays a token
# of its own wherever the text is encoded from.
_CONTROLS = (
    PAD,
    END,
    "<|im_start|>",
    "<|im_start|>system\n",
    "\n<|im_start|>user\n",
    "\n<|im_start|>assistant\n",
    "\n<|im_start|>user\n<tool_response>\n",
    "\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
)
# Strings of the format of a call. They control nothing: a policy may write or read them anywhere.
_FORMAT = (
    "<tool_call>",
    "</tool_call>",
    '<tool_call>\n{"name": "',
    '", "arguments": {',
    "}}\n</tool_call>",
)
# A JSON key with its punctuation, a word, a number of two digits, punctuation, white space.
_SPLIT = r"""(?:, )?"[A-Za-z_]+": | ?[A-Za-z_]+|\d{1,2}|[^\sA-Za-z_\d]+\n?|\s"""
# Merges go by frequency: the numbers come before any word.
_NUMBER_COPIES = 1000

# Standard deviation of random weights; larger than usual, for matrices this small.
_INITIAL_STD = 0.06
# Periods and amplitude of the waves in a number's embedding, and how much of the random rest stays.
_PERIODS = (2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 16.0, 25.0, 40.0, 70.0, 120.0, 200.0)
_WAVE = 0.2
_NUMBER_NOISE = 0.3


def make_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `size` tokens, trained on `texts`.

    It reads any text; words that `texts` lack take more tokens.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    controls = [AddedToken(text, special=True, normalized=False) for text in _CONTROLS]
    formats = [AddedToken(text, special=False, normalized=False) for text in _FORMAT]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(formats),
        show_progress=False,
        special_tokens=controls,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    numbers = (str(number) for number in range(10, 100) for _ in range(_NUMBER_COPIES))
    # The format's strings are tokens already, so the words inside them must not be counted.
    between = re.compile(
        "|".join(map(re.escape, sorted(_CONTROLS + _FORMAT, key=len, reverse=True)))
    )
    words = (part for text in texts for part in between.split(text))
    backend.train_from_iterator(itertools.chain(numbers, words), trainer)
    backend.add_tokens(formats)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=PAD, chat_template=TEMPLATE
    )


def make_model(recipe: PolicyRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A new Qwen3 policy from torch's global generator; its head is tied until `untie`.

    Numbers start with sines and cosines of their value, so that parity, order and neighbourhood need
    not be discovered from a few thousand examples.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        intermediate_size=recipe.ffn,
        max_position_embeddings=recipe.max_positions,
        initializer_range=_INITIAL_STD,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.backend_tokenizer.token_to_id(END),
        pad_token_id=tokenizer.backend_tokenizer.token_to_id(PAD),
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    embedding_VH = model.model.embed_tokens.weight
    numbers = tokenizer.convert_tokens_to_ids([str(number) for number in range(100)])
    angles_NP = 2 * math.pi * torch.arange(100.0)[:, None] / torch.tensor(_PERIODS)
    waves_NW = torch.cat([angles_NP.cos(), angles_NP.sin()], dim=1)[:, : recipe.hidden]
    with torch.no_grad():
        embedding_VH[numbers] *= _NUMBER_NOISE
        embedding_VH[numbers, : waves_NW.shape[1]] += _WAVE * waves_NW
    # What a token is as input and as output is learned once: copying then needs few examples.
    model.lm_head.weight = embedding_VH
    # A checkpoint made meanwhile says so, too.
    model.config.tie_word_embeddings = True
    return model


def untie(model: Qwen3ForCausalLM) -> None:
    """Give the head its own copy: vLLM's CPU backend keeps a stale tied head on weight updates."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
