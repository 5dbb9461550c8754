"""This model for transformers. tools.export puts this file beside model.py and the weights.

    pipeline("text-generation", FOLDER, trust_remote_code=True)("LUCIO:")

Prompts of one batch must be equally long: nothing here knows of padding.
"""

from dataclasses import fields

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .model import GPT, Cache, GPTConfig

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class DramaConfig(PretrainedConfig):
    model_type = "drama"


class Past(Cache):
    """What GPT.forward takes for a cache: one of transformers', theirs, which holds keys and values.

    before: the tokens before the new ones, input_ids; None: those that theirs remembers.
    """

    def __init__(self, theirs, before, input_ids, config: GPTConfig):
        self.theirs, self.length, self.block_size = theirs, theirs.get_seq_length(), config.block_size
        n, needed = config.n_before, min(config.n_before, self.length)
        known = input_ids.new_full((len(input_ids), n), config.vocab_size)  # none
        if self.length:
            if before is None or before.size(1) < needed:
                before = getattr(theirs, "before", None)
            if before is None:
                raise ValueError(f"of another model's cache give before, {needed} tokens before input_ids")
            known = torch.cat([known, before], dim=1)[:, -n:].clone()
        self.before = theirs.before = known  # rewritten by forward

    def append(self, layer: int, k, v):
        k, v = self.theirs.update(k, v, layer)
        return k[:, :, -self.block_size :], v[:, :, -self.block_size :]


class DramaForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = DramaConfig
    base_model_prefix = "gpt"
    _supports_cache_class = True  # transformers before version 5 asks

    def __init__(self, config):
        super().__init__(config)
        self.gpt = GPT(GPTConfig(**{field.name: getattr(config, field.name) for field in fields(GPTConfig)}))
        self.post_init()

    def get_input_embeddings(self):
        return self.gpt.wte

    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        """Adds before: the tokens before the new ones. Of a prompt over block_size only the end is read."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        inputs["input_ids"] = inputs["input_ids"][:, -self.gpt.config.block_size :]
        inputs["before"] = input_ids[:, : -inputs["input_ids"].size(1)][:, -self.gpt.config.n_before :]
        return inputs

    def forward(self, input_ids, attention_mask=None, labels=None, use_cache=None, before=None, cache=None,
                past_key_values=None, **unused):  # fmt: skip
        """input_ids (B, T) -> logits (B, T, V); with labels (B, T) the loss too: of each token's next one.

        While training the loss alone. cache (past_key_values in earlier versions) is one of transformers'
        and grows in place; use_cache makes one. before (B, up to n_before): the tokens before input_ids; left
        out, they are those that the cache remembers. Raises ValueError for what it cannot read.
        """
        if unused.get("output_attentions") or unused.get("output_hidden_states"):
            raise ValueError("this model gives logits alone, no attentions and no hidden states")
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("no padding, no static cache: prompts of one batch must be equally long")
        if self.training:
            if labels is None:
                raise ValueError("training needs labels; call eval() to read or write")
            return CausalLMOutputWithPast(loss=self.gpt(input_ids[:, :-1], labels[:, 1:])[1])
        cache = past_key_values if cache is None else cache
        cache = DynamicCache() if cache is None and use_cache else cache
        past = None if cache is None else Past(cache, before, input_ids, self.gpt.config)
        logits, loss = self.gpt(input_ids, input_ids, past)[0], None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
