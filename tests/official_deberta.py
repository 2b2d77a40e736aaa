"""Tiny DeBERTas, and what the official code computes with a prompt in one."""

import torch
from transformers import AutoConfig, AutoModel
from transformers.models.deberta import modeling_deberta as v1
from transformers.models.deberta_v2 import modeling_deberta_v2 as v2

COMMON = dict(
    vocab_size=100,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    initializer_range=0.2,
    relative_attention=True,
    type_vocab_size=2,
)
BOTH = ["c2p", "p2c"]
V3 = dict(
    position_buckets=6, max_relative_positions=-1, norm_rel_ebd="layer_norm", share_att_key=True,
    position_biased_input=False, pos_att_type=["p2c", "c2p"], type_vocab_size=0,
)  # fmt: skip
CASES = {
    "v1": ("deberta", dict(pos_att_type=BOTH, position_biased_input=False, type_vocab_size=0)),
    "v1-short-reach": ("deberta", dict(pos_att_type=BOTH, max_relative_positions=5)),
    "v1-c2p": ("deberta", dict(pos_att_type=["c2p"])),
    "v2": ("deberta-v2", dict(pos_att_type=BOTH, position_biased_input=True)),
    "v2-p2c": ("deberta-v2", dict(pos_att_type=["p2c"], max_relative_positions=7)),
    "v2-conv": ("deberta-v2", V3 | dict(conv_kernel_size=3, conv_act="gelu")),
    "v3": ("deberta-v2", V3),
    "absolute": ("deberta-v2", dict(relative_attention=False, pos_att_type=None)),
}


def tiny_deberta(case):
    family, settings = CASES[case]
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **COMMON | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.float().eval()


def official_states(backbone, ids, prompts, monkeypatch, **inputs):
    """One row of the stock model whose attention gets the prompt as the official code does it:
    concatenated to keys and values, with zeros for the scores of relative positions."""
    calls = iter(prompts)

    def concatenated(module, query, key, value, position_scores):
        prompt = next(calls)  # (2, heads, prompt_length, head_dim) or None
        if prompt is not None:
            key = torch.cat((prompt[0][None], key), 2)
            value = torch.cat((prompt[1][None], value), 2)
        extra = key.shape[2] - query.shape[2]
        padded = torch.nn.functional.pad(position_scores, (extra, 0))
        weights = (query @ key.transpose(-1, -2) + padded).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2), None

    def forward_v1(self, hidden_states, mask, output_attentions=False, query_states=None,
                   relative_pos=None, rel_embeddings=None):  # fmt: skip
        fused = self.transpose_for_scores(self.in_proj(hidden_states))
        query, key, value = fused.chunk(3, dim=-1)
        query = query + self.transpose_for_scores(self.q_bias[None, None, :])
        value = value + self.transpose_for_scores(self.v_bias[None, None, :])
        factor = 1 + len(self.pos_att_type)
        query = query / v1.scaled_size_sqrt(query, factor)
        scores = self.disentangled_att_bias(query, key, relative_pos, rel_embeddings, factor)
        return concatenated(self, query, key, value, scores)

    def forward_v2(self, hidden_states, mask, output_attentions=False, query_states=None,
                   relative_pos=None, rel_embeddings=None):  # fmt: skip
        heads = self.num_attention_heads
        query, key, value = (
            self.transpose_for_scores(projection(hidden_states), heads)
            for projection in (self.query_proj, self.key_proj, self.value_proj)
        )
        factor = 1 + sum(kind in self.pos_att_type for kind in BOTH)
        scores = torch.zeros(1, heads, query.shape[1], query.shape[1])
        if self.relative_attention:
            arguments = (query, key, relative_pos, rel_embeddings, factor)
            scores = self.disentangled_attention_bias(*arguments)[None]
        scale = v2.scaled_size_sqrt(query, factor)
        return concatenated(self, query[None] / scale, key[None], value[None], scores)

    monkeypatch.setattr(v1.DisentangledSelfAttention, "forward", forward_v1)
    monkeypatch.setattr(v2.DisentangledSelfAttention, "forward", forward_v2)
    with monkeypatch.context():
        return backbone(ids, **inputs).last_hidden_state
