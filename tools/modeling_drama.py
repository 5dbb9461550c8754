"""This model for transformers. tools.export puts this file beside model.py and the weights.

    pipeline("text-generation", FOLDER, trust_remote_code=True)("LUCIO:")

Prompts of one batch must be equally long: nothing here knows of padding.
"""

from dataclasses import fields

import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .model import GPT, PAST, GPTConfig


class DramaConfig(PretrainedConfig):
    model_type = "drama"


class Past:
    """What GPT.forward takes for its cache: one of transformers', which holds keys and values, behind it."""

    position = mask = None

    def __init__(self, theirs, before, block_size: int):
        self.theirs, self.before, self.block_size = theirs, before, block_size
        self.length = theirs.get_seq_length()

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

    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        """Adds before (B, PAST at most): the tokens before the new ones, which the embedding looks at."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        new = inputs["input_ids"].size(1)
        inputs["before"] = input_ids[:, :-new][:, -PAST:]
        return inputs

    def forward(
        self,
        input_ids,
        attention_mask=None,
        labels=None,
        before=None,
        cache=None,
        past_key_values=None,
        **unused,
    ):
        """input_ids (B, T) -> logits (B, T, V); with labels (B, T), the loss of each token's next one too.

        cache, or past_key_values in earlier versions of transformers, is one of its caches, which grows in
        place; before is then what prepare_inputs_for_generation gives. Raises ValueError past block_size
        where positions are learned.
        """
        cache = past_key_values if cache is None else cache
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("the prompts of one batch must be equally long: this model knows no padding")
        if labels is not None:
            logits, loss = self.gpt(input_ids[:, :-1], labels[:, 1:])
            return CausalLMOutputWithPast(loss=loss, logits=logits)
        if self.training:
            raise ValueError("training needs labels; call eval() to read or write")
        past = None
        if cache is not None:
            nothing = input_ids.new_full((len(input_ids), PAST), self.gpt.config.vocab_size)
            if before is None and cache.get_seq_length():
                raise ValueError(
                    f"give before, the {PAST} tokens before input_ids, beside a cache that has any"
                )
            known = nothing if before is None else torch.cat([nothing, before], dim=1)[:, -PAST:]
            past = Past(cache, known.clone(), self.gpt.config.block_size)
        return CausalLMOutputWithPast(logits=self.gpt(input_ids, input_ids, past)[0])
