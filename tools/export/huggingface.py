"""A model in Hugging Face's format, for transformers: as its GPT-2, or with the network's own code.

Needs safetensors and tokenizers and says so; transformers is not needed.
"""

import dataclasses
import json
import shutil
from pathlib import Path

from drama.program import ROOT, optional

import torch

from configurator import one_line
from drama.training.pretrained import spell, their_name, transposed, vocabulary
from model import GPT, GPTConfig
from tools.export.mirrored import is_mirrored


def is_gpt2(config: GPTConfig) -> bool:
    """Whether other tools have a class for it."""
    return config.arch == "gpt2" and config.n_ensemble == 1


def gpt2_config(c: GPTConfig) -> dict:
    """config.json of what transformers loads as one of its own models."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{name: getattr(c, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        **dict.fromkeys(("n_positions", "n_ctx"), c.block_size),  # n_ctx is llama.cpp's name for it
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), c.dropout),
        "activation_function": {"exact": "gelu", "tanh": "gelu_new"}[c.gelu],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }


def own_config(c: GPTConfig) -> dict:
    """config.json of what transformers loads with modeling_drama.py."""
    classes = {"AutoConfig": "DramaConfig", "AutoModelForCausalLM": "DramaForCausalLM"}
    return {
        "model_type": "drama",
        "architectures": ["DramaForCausalLM"],
        "auto_map": {auto: f"modeling_drama.{name}" for auto, name in classes.items()},
        **dataclasses.asdict(c),
        # their names, for what asks by these
        "hidden_size": c.n_embd,
        "num_attention_heads": c.n_head,
        "num_hidden_layers": c.n_layer * c.n_ensemble,
        "tie_word_embeddings": False,
        "tokenizer_class": "PreTrainedTokenizerFast",  # earlier versions look for it here
    }


def to_gpt2(model: GPT) -> dict[str, torch.Tensor]:
    """A GPT-2's weights under transformers' names; biases that ours does not have are zero there."""
    weights = {}
    for name, value in model.state_dict().items():
        weights[their_name(name)] = (value.T if transposed(name) else value).contiguous()
        bias = name.removesuffix("weight") + "bias"
        if not model.config.bias and name not in ("wte.weight", "wpe.weight"):
            weights[their_name(bias)] = torch.zeros(value.shape[0])
    return {f"transformer.{name}": value for name, value in weights.items()}


def max_length(model: GPT) -> int:
    """How long a text becomes where nothing is said; rotary positions go on past block_size."""
    return model.config.block_size if model.wpe else 512


def write_hf(folder: Path, model: GPT, tok, prompt: str, dtype: str):
    """Write a folder that transformers loads; with the network's own code where GPT-2 is another network."""
    c = model.config
    if is_gpt2(c) and is_mirrored(c):
        config, weights = gpt2_config(c), to_gpt2(model)
    else:
        if is_gpt2(c):
            print("model.py holds another network than transformers' GPT-2, so it goes into the folder")
        config = own_config(c)
        weights = {f"gpt.{name}": value.contiguous() for name, value in model.state_dict().items()}
        for file in (ROOT / "model.py", Path(__file__).with_name("modeling_drama.py")):
            shutil.copy(file, folder)
    contents = {
        "config.json": {**config, "bos_token_id": None, "eos_token_id": None, "dtype": "float32"},
        "generation_config.json": {"do_sample": True, "temperature": 0.8, "max_length": max_length(model)},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": c.block_size,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    file = folder / "model.safetensors"
    try:
        optional("safetensors.torch").save_file(weights, file, metadata={"format": "pt"})
    except optional("safetensors").SafetensorError as e:  # which is what it makes of a full disk
        raise OSError(0, f"could not be written ({one_line(e)})", str(file)) from None
    fast_tokenizer(tok).save(str(folder / "tokenizer.json"))


def merges(tokens: list[bytes]) -> list[tuple[str, str]]:
    """Any two tokens that make a third, in the order of that, as tiktoken merges them."""
    known = set(tokens)
    splits = ((token[:n], token[n:]) for token in tokens for n in range(1, len(token)))
    return [(spell(a), spell(b)) for a, b in splits if a in known and b in known]


def fast_tokenizer(tok):
    """The same as a tokenizer of Hugging Face's library."""
    tokenizers = optional("tokenizers")
    if tok.kind == "char":
        # the unknown token is not in the vocabulary, so that unknown characters are refused
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary(tok), unk_token="<unknown>"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        made.decoder = tokenizers.decoders.Fuse()
        return made
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary(tok), merges(tok.tokens)))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # with GPT-2's pattern
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(tok.special))
    return made
