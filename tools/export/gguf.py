"""A GPT-2 as one GGUF file, which llama.cpp and what is built on it (Ollama, LM Studio) load.

Needs the package gguf and says so. The keys and names are llama.cpp's for its architecture "gpt2".
"""

from pathlib import Path

from drama.program import optional

import torch

from configurator import UserError
from drama.training.pretrained import spell, transposed
from model import GPT
from tools.export.huggingface import is_gpt2, merges, to_gpt2
from tools.export.mirrored import require_mirrored

# Conversations are not what these models know: what is typed goes to the model as it is.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
NEVER = ("\u0100", "\u0100")  # NUL twice: a merge that no text asks for, since an empty list is refused


def character_merges(tokens: list[bytes]) -> list[tuple[str, str]]:
    """How characters of several bytes come about from their bytes, as byte-pair merges."""
    pairs = ((token[:n], token[n : n + 1]) for token in tokens for n in range(1, len(token)))
    return [(spell(a), spell(b)) for a, b in dict.fromkeys(pairs)]


def add_tokenizer(writer, tok) -> int:
    """Write the vocabulary; returns how many tokens it has: one more, for the end, where tok has no such."""
    kinds = optional("gguf").TokenType
    pairs = (character_merges if tok.kind == "char" else merges)(tok.tokens)
    special = tok.special or ("<|end|>",)
    end = len(tok.tokens) + len(special) - 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("trillion")  # GPT-2's pattern, without its clean-up of spaces
    writer.add_token_list([*map(spell, tok.tokens), *special])
    writer.add_token_types([kinds.NORMAL] * len(tok.tokens) + [kinds.CONTROL] * len(special))
    writer.add_token_merges([" ".join(pair) for pair in pairs or [NEVER]])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return end + 1


def tensors(model: GPT, tokens: int) -> dict[str, torch.Tensor]:
    """A GPT-2's weights under llama.cpp's names, matrices as (outputs, inputs); biases it lacks are zero.

    The head is untied, with a row for an end of text that is never likely. A normalised x sums to 0, so a
    constant added to a row of the head changes nothing, except through the norm's bias. So that is set to 1
    everywhere; the norm's gain, and what its own bias gave each token, go into the head's rows; and the row
    of the end gives -10 C there, whatever x is.
    """
    gguf, C = optional("gguf"), model.config.n_embd
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    weights = {}
    for name, value in to_gpt2(model).items():
        weights[names.get_name(name, (".weight", ".bias"))] = value.T if transposed(name) else value
    wte, bias = weights["token_embd.weight"], weights["output_norm.bias"]
    rows = wte * weights["output_norm.weight"]
    rows = rows - rows.mean(1, keepdim=True) + (wte @ bias)[:, None] / C
    weights["output.weight"] = torch.cat([rows, wte.new_full((tokens - len(wte), C), -10.0)])
    weights["output_norm.weight"] = weights["output_norm.bias"] = torch.ones(C)
    weights["token_embd.weight"] = torch.cat([wte, wte.new_zeros(tokens - len(wte), C)])
    return weights


def write_gguf(folder: Path, model: GPT, tok, prompt: str, dtype: str):
    """Write model.gguf, matrices in dtype. Raises UserError for a model that llama.cpp has no class for."""
    c, half = model.config, dtype == "float16"
    require_mirrored(c, "gguf")
    if not is_gpt2(c):
        what = f"arch={c.arch}, n_ensemble={c.n_ensemble} has no counterpart in llama.cpp"
        advice = "--to=html, --to=hf and --to=onnx take it; or train with --arch=gpt2 --n_ensemble=1"
        raise UserError(f"{what}; {advice}")
    gguf = optional("gguf")
    writer = gguf.GGUFWriter(folder / "model.gguf", "gpt2")
    writer.add_name("drama")
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(4 * c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    for name, value in tensors(model, add_tokenizer(writer, tok)).items():
        number = torch.float16 if half and value.dim() == 2 else torch.float32
        writer.add_tensor(name, value.to(number).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
