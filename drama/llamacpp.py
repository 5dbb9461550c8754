"""A GPT-2 as one GGUF file, which llama.cpp and what is built on it (Ollama, LM Studio) load.

Needs the package gguf and says so. The keys and names are llama.cpp's for its architecture "gpt2".
"""

from pathlib import Path

from drama.program import optional

import torch

from configurator import UserError
from drama.huggingface import merges, spell
from drama.tokenizer import CharTokenizer
from model import GPT

# Conversations are not what these models know: what is typed goes to the model as it is.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
NEVER = ("\u0100", "\u0100")  # NUL twice: a merge that no text asks for, since an empty list is refused


def refuse_all_but_gpt2(model: GPT):
    """Raise UserError for a model that llama.cpp has no class for."""
    for name, value in {"arch": "gpt2", "n_ensemble": 1}.items():
        if (own := getattr(model.config, name)) != value:
            advice = f"--to=html, --to=hf and --to=onnx take it; or train with --{name}={value}"
            raise UserError(f"{name}={own!r} has no counterpart in llama.cpp; {advice}")


def character_merges(chars: str) -> list[tuple[str, str]]:
    """How characters of several bytes come about from their bytes, as byte-pair merges."""
    found = {}
    for char in chars:
        data = char.encode("utf-8", "surrogatepass")
        for n in range(1, len(data)):
            found[spell(data[:n]), spell(data[n : n + 1])] = True
    return list(found) or [NEVER]


def add_tokenizer(writer, tok) -> int:
    """Write the vocabulary; returns how many tokens it has: one more, for the end, where tok has no such."""
    kinds = optional("gguf").TokenType
    if isinstance(tok, CharTokenizer):
        spelled = [spell(char.encode("utf-8", "surrogatepass")) for char in tok.chars]
        pairs, special = character_merges(tok.chars), []
    else:
        spelled = [spell(token) for token in tok.tokens]
        pairs = [(spell(a), spell(b)) for a, b in merges(tok.tokens)] or [NEVER]
        special = list(tok.special)
    types = [kinds.NORMAL] * len(spelled) + [kinds.CONTROL] * (len(special) or 1)
    spelled += special or ["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("trillion")  # GPT-2's pattern, without its clean-up of spaces
    writer.add_token_list(spelled)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in pairs])
    writer.add_bos_token_id(len(spelled) - 1)
    writer.add_eos_token_id(len(spelled) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(spelled)


def head_and_norm(model: GPT, tokens: int) -> dict[str, torch.Tensor]:
    """The last norm and an untied head, with a row for an end of text that is never likely.

    A normalised x sums to 0, so a constant added to a row of the head changes nothing, except through the
    norm's bias. So that is set to 1 everywhere; the norm's gain, and what its own bias gave each token, go
    into the head's rows; and the row of the end gives -10 C there, whatever x is.
    """
    C = model.config.n_embd
    gain, bias = model.ln_f.weight, model.ln_f.bias
    rows = model.wte.weight * gain
    rows = rows - rows.mean(1, keepdim=True)
    if bias is not None:
        rows = rows + (model.wte.weight @ bias)[:, None] / C
    end = rows.new_full((tokens - len(rows), C), -10.0)
    return {
        "output_norm.weight": torch.ones(C),
        "output_norm.bias": torch.ones(C),
        "output.weight": torch.cat([rows, end]),
    }


def tensors(model: GPT, tokens: int) -> dict[str, torch.Tensor]:
    """A GPT-2's weights under llama.cpp's names, matrices as (outputs, inputs); biases it lacks are zero."""
    C = model.config.n_embd
    found = head_and_norm(model, tokens)
    unused = model.wte.weight.new_zeros(tokens - model.config.vocab_size, C)
    found["token_embd.weight"] = torch.cat([model.wte.weight, unused])
    found["position_embd.weight"] = model.wpe.weight
    for n, block in enumerate(model.blocks):
        layers = dict(
            attn_norm=block.ln_1, attn_qkv=block.attn.c_attn, attn_output=block.attn.c_proj,
            ffn_norm=block.ln_2, ffn_up=block.mlp.c_fc, ffn_down=block.mlp.c_proj,
        )  # fmt: skip
        for name, layer in layers.items():
            zero = layer.weight.new_zeros(len(layer.weight))
            found[f"blk.{n}.{name}.weight"] = layer.weight
            found[f"blk.{n}.{name}.bias"] = zero if layer.bias is None else layer.bias
    return found


def write_gguf(path: Path, model: GPT, tok, dtype: torch.dtype = torch.float32):
    """Write a model as a GGUF file, matrices in dtype. Raises UserError where it has no class there."""
    refuse_all_but_gpt2(model)
    gguf, c = optional("gguf"), model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name("drama")
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(4 * c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(1e-5)
    half = dtype == torch.float16
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    for name, value in tensors(model, add_tokenizer(writer, tok)).items():
        value = value.detach().to(dtype if value.dim() == 2 else torch.float32)
        writer.add_tensor(name, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
