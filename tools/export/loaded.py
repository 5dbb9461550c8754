"""What tools.export wrote, loaded by the library it is for: does that predict what the model does?"""

import contextlib
import importlib.metadata
import io
from pathlib import Path

from drama.program import optional

import torch

from configurator import one_line
from drama.sampling.generation import prompt_ids
from model import GPT


def transformers_predicts(folder: Path, prompt: str) -> dict[int, float]:
    """{token: probability} of what follows the prompt."""
    transformers = optional("transformers")
    tok = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(tok(prompt, return_tensors="pt")["input_ids"]).logits
    return dict(enumerate(logits[0, -1].softmax(-1).tolist()))


def nothing_read(model, vocab_size: int) -> dict:
    """What an ONNX model takes besides its first tokens: no keys, no values, no tokens before."""
    numpy = optional("numpy")
    sizes = {i.name: [n if type(n) is int else 0 for n in i.shape] for i in model.get_inputs()}
    state = {name: numpy.zeros(size, "float32") for name, size in sizes.items() if name != "tokens"}
    return state | {"before": numpy.full(sizes["before"], vocab_size)}


def onnxruntime_predicts(folder: Path, prompt: str) -> dict[int, float]:
    """The same, after the prompt but one token, and that token with the cache."""
    numpy, tok = optional("numpy"), optional("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = optional("onnxruntime").InferenceSession(str(folder / "model.onnx"))
    state = nothing_read(model, tok.get_vocab_size())
    ids = tok.encode(prompt).ids
    for new in filter(None, (ids[:-1], ids[-1:])):
        logits, *kept = model.run(None, {"tokens": numpy.array([new]), **state})
        state = dict(zip(state, kept, strict=True))
    return dict(enumerate(torch.from_numpy(logits)[0].softmax(-1).tolist()))


def llamacpp_predicts(folder: Path, prompt: str) -> dict[int, float]:
    """The same, for the ten likeliest tokens."""
    xllamacpp = optional("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity = str(folder / "model.gguf"), 0, -1
    job = dict(prompt=prompt, n_predict=1, n_probs=10, temperature=0, logprobs=True)
    (first,) = xllamacpp.Server(params).handle_completions(job)["choices"][0]["logprobs"]["content"]
    return {token["id"]: torch.tensor(token["logprob"]).exp().item() for token in first["top_logprobs"]}


PREDICTORS = {
    "hf": ("transformers", transformers_predicts),
    "onnx": ("onnxruntime", onnxruntime_predicts),
    "gguf": ("xllamacpp", llamacpp_predicts),
}


def check(folder: Path, to: str, model: GPT, tok, prompt: str) -> str:
    """One line that says how it went, for people; empty where there is nothing to load it with.

    Raises RuntimeError where a library loads it and predicts something else.
    """
    try:
        library, predict = PREDICTORS[to]
        version = importlib.metadata.version(library)
    except (KeyError, importlib.metadata.PackageNotFoundError):
        return ""
    while prompt_ids(tok, prompt, model).numel() > model.config.block_size:
        prompt = prompt[1:]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            predicted = predict(folder, prompt)
    except Exception as e:  # another version may not know what it needs; each has its own errors
        return f"not checked: {library} {version} does not load it ({one_line(e)[:150]})"
    with torch.no_grad():
        expected = model(prompt_ids(tok, prompt, model))[0][0, -1].softmax(-1)
    worst = max(abs(p - expected[n].item()) for n, p in predicted.items())
    if worst > 0.01:
        raise RuntimeError(f"{library} {version} gives a token a probability that is off by {worst:.3f}")
    return f"checked: {library} {version} loads it and predicts the same"
