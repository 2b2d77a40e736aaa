"""ptv2's attention in a stock model of transformers, without PromptModel: a prompt for each row.

    python examples/attention.py

transformers keeps a registry of attention functions. With ptv2's in it, a model that is loaded
with attn_implementation="ptv2" takes one more argument, `prompts`; without it nothing changes.
The prompts here learn, in a plain loop, to bring the vectors of two texts together.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
)

from ptv2.attention import LayerPrompts, PromptBatch, attention_forward, attention_mask
from ptv2.demo import encoder_directory

TEXTS = ["a great film", "nothing happens in it for two hours", "a film in rome"]
PROMPT_OF_ROW = [0, 1, -1]  # -1: none


class Prompts(nn.Module):
    """Keys and values of some prompts, in every layer one pool of the rows of all of them."""

    def __init__(self, config: PreTrainedConfig, prompts: int, length: int) -> None:
        super().__init__()
        heads, layers = config.num_attention_heads, config.num_hidden_layers
        sizes = (layers, 2, prompts * length, heads, config.hidden_size // heads)
        self.key_value = nn.Parameter(torch.randn(sizes))
        starts = torch.arange(0, prompts * length, length, dtype=torch.int32)
        self.register_buffer("bounds", torch.stack((starts, starts + length), 1))  # (prompts, 2)

    def forward(self, prompt_ids: Tensor) -> PromptBatch:
        """The argument `prompts` of one forward; prompt_ids (rows,)."""
        layers = [LayerPrompts(key, value, None, self.bounds) for key, value in self.key_value]
        return PromptBatch(layers, prompt_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", help="directory or name of the encoder; by default MiniLM")
    parser.add_argument("--steps", type=int, default=30, help="of training")
    args = parser.parse_args()
    backbone = args.backbone or encoder_directory()
    AttentionInterface.register("ptv2", attention_forward)
    AttentionMaskInterface.register("ptv2", attention_mask)  # else padding would be ignored
    model = AutoModel.from_pretrained(backbone, attn_implementation="ptv2")
    model.requires_grad_(False).eval()
    batch = AutoTokenizer.from_pretrained(backbone)(TEXTS, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()  # (rows, length)
    with torch.no_grad():
        stock = AutoModel.from_pretrained(backbone).eval()(**batch).last_hidden_state

    def error(states: Tensor, rows: Tensor) -> float:
        return float((states.detach() - stock)[rows].abs().max())

    bare = error(model(**batch).last_hidden_state, mask)
    print(f"without prompts: {bare:.0e} off the stock model")
    torch.manual_seed(0)
    prompts, ids = Prompts(model.config, prompts=2, length=8), torch.tensor(PROMPT_OF_ROW)
    optimizer = torch.optim.Adam(prompts.parameters(), lr=1e-2)
    for step in range(args.steps + 1):
        given = prompts(ids)
        states = model(**batch, prompts=given).last_hidden_state  # (rows, length, hidden_size)
        given.require_taken()  # an error if a layer had ignored its prompt
        first, second, _ = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        similarity = cosine_similarity(first, second, dim=0)
        if step % 10 == 0:
            print(f"step {step}: similarity of the first two texts {similarity.detach():.2f}")
        optimizer.zero_grad()
        (1 - similarity).backward()  # the frozen model has no gradients, only the prompts do
        optimizer.step()
    alone = error(states, mask & (ids < 0)[:, None])
    print(f"the row without a prompt: {alone:.0e} off the stock model")


if __name__ == "__main__":
    main()
