"""The tables of a report, from the results of the suite's parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import geometric_mean, mean, median, stdev
from typing import Any

from compare import ours

METHODS = {
    "ptv2": "P-Tuning v2 (ptv2)",
    "ptv2-pooler": "the same with BERT's head",
    "official": "P-Tuning v2 (official method)",
    "peft-prefix": "prefix tuning (PEFT)",
    "adapters-prefix": "prefix tuning (adapters)",
    "peft-lora": "LoRA (PEFT)",
    "adapters-bottleneck": "adapters (adapters)",
    "peft-prompt-tuning": "prompt tuning (PEFT)",
    "peft-p-tuning": "P-Tuning v1 (PEFT)",
    "fine-tuning": "full fine-tuning",
}
"""The methods in the order of the table, and what readers call them."""
SYSTEMS = {
    "ptv2": "ptv2",
    "compiled": "ptv2, compiled",
    "bare": "ptv2's server without prompts",
    "peft": "PEFT, an adapter a task",
    "adapters": "adapters, BatchSplit",
    "copies": "a fine-tuned encoder a task",
}


STEPS = {
    "stock": "without a prompt (stock)",
    "stock, no attention dropout": "stock, no attention dropout",
    "ptv2": "ptv2",
    "ptv2, layers again": "ptv2, --checkpointing layers",
    "ptv2, all but attention again": "ptv2, --checkpointing selective",
    "peft": "prefix tuning (PEFT)",
    "ptv2 packed": "ptv2, packed",
}


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column is what the others are of."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = [self.header, ("---",) + ("---:",) * (len(self.header) - 1), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_spread(seconds: float, share: float) -> str:
    """Milliseconds, and how far the middle half of the runs lies apart."""
    return f"{1000 * seconds:,.2f} ± {50 * share:.0f}%"


def kernel(results: Any) -> Iterator[Table]:
    """A table of all problems, then one for each: every implementation's times."""
    reasons = [untimed(problem["rivals"]) for problem in results["problems"].values()]
    nowhere = {name: why for name, why in reasons[0].items() if all(name in x for x in reasons)}
    padded = [name for name, x in results["problems"].items() if x["problem"]["padded"]]
    note = (
        f"Packed times include packing and unpacking. With padding: {', '.join(padded) or 'none'}."
    )
    yield fastest_rivals(results, f"{note} {not_timed(nowhere)}".strip())
    part = "forward + backward, warm"
    for name, problem in results["problems"].items():
        rivals = {row["rival"]: row for row in problem["rivals"] if "seconds" in row}
        own = ours(rivals)
        rows = []
        for rival, row in rivals.items():
            times = f"{row['seconds'][part] / rivals[own]['seconds'][part]:.2f}" if own else ""
            cells = [
                with_spread(row["seconds"][key], row.get("spread", {}).get(key, 0))
                for key in ("forward, warm", part)
            ]
            rows.append((rival, *cells, times, f"{row['saved bytes'] / 2**20:.2f}"))
        missing = untimed(problem["rivals"])
        here = {name: why for name, why in missing.items() if name not in nowhere}
        header = ("", "forward, ms", "forward + backward, ms", "/ ptv2's", "kept, MiB")
        yield Table(name, header, rows, not_timed(here))


def untimed(rivals: Any) -> dict[str, str]:
    """The implementations that were not timed, and why."""
    return {
        row["rival"]: (row.get("unsupported") or row["wrong"]).partition(". ")[0]
        for row in rivals
        if "seconds" not in row
    }


def not_timed(reasons: dict[str, str]) -> str:
    """A note, if there is something to say."""
    named = "; ".join(f"{name} ({why})" for name, why in reasons.items())
    return f"Not timed: {named}" if reasons else ""


def fastest(problem: Any) -> list[tuple[str, float]] | None:
    """The fastest rival and its time in terms of ptv2's, forward, then forward and backward."""
    timed = {row["rival"]: row["seconds"] for row in problem["rivals"] if "seconds" in row}
    own = ours({row["rival"]: row for row in problem["rivals"]})
    others = [rival for rival in timed if not rival.startswith("ptv2")]
    if not own or not others:
        return None
    found = []
    for part in ("forward, warm", "forward + backward, warm"):
        best = min(others, key=lambda rival: timed[rival][part])
        found.append((best, timed[best][part] / timed[own][part]))
    return found


def fastest_rivals(results: Any, note: str) -> Table:
    """What the fastest rival takes, forward, and forward and backward."""
    rows = []
    for name, problem in results["problems"].items():
        if found := fastest(problem):
            rows.append((name, *(x for rival, ratio in found for x in (f"{ratio:.2f}", rival))))
    header = ("", "forward / ptv2's", "by", "forward + backward / ptv2's", "by")
    return Table("the fastest rival of each problem", header, rows, note)


def training(results: Any) -> Iterator[Table]:
    """A table a case: times beside ptv2's, and memory; then the ratios over all cases."""
    header = ("", "step, ms", "/ ptv2's", "peak, MiB", "kept for the backward, MiB")
    for case, found in results["cases"].items():
        own = found["seconds"]["ptv2"]
        rows = []
        for rival, seconds in found["seconds"].items():
            peak, kept = found.get("peak bytes", {}).get(rival), found["kept bytes"].get(rival)
            rows.append(
                (
                    STEPS.get(rival, rival),
                    with_spread(seconds, found.get("spread", {}).get(rival, 0)),
                    f"{seconds / own:.2f}",
                    f"{peak / 2**20:,.0f}" if peak else "",
                    f"{kept / 2**20:,.0f}" if kept else "",
                )
            )
        yield Table(case, header, rows)
    if "summary" in results:
        ratios = [tuple(line.partition(": ")[::2]) for line in results["summary"]]
        yield Table("ratios and goals", ("", "found"), ratios)


def methods(results: Any) -> Iterator[Table]:
    """The table that newcomers want."""
    rows, settings = [], results["settings"]
    for name, label in METHODS.items():
        found = results["methods"].get(name)
        if found is None:
            continue
        runs = [run["score"] for run in found.get("runs", {}).values()]
        runs = [] if settings.get("quick") else runs
        score = f"{mean(runs):.4f}" if runs else ""
        if len(runs) > 1:
            score += f" ± {stdev(runs):.4f} ({len(runs)})"
        if "seconds" not in found:
            why = found.get("failed") or found.get("wrong", "not measured")
            rows.append((label, score, why, *[""] * 5))
            continue
        ms = {kind: 1000 * median(x) for kind, x in found["seconds"].items()}
        rows.append(
            (
                label,
                score,
                f"{found['trained parameters']:,}",
                f"{found['asset bytes'] / 1e3:,.0f}",
                f"{ms['training step']:.0f}",
                f"{found['peak bytes'] / 2**20:,.0f}" if found["peak bytes"] else "",
                f"{ms['text alone']:.1f}",
                f"{ms['rows of many tasks'] / results['settings']['rows']:.2f}",
            )
        )
    examples = min(settings["train"], settings["examples"] or settings["train"])
    note = (
        f"{settings['encoder']}, {settings['data']}: {examples} examples, {settings['epochs']} "
        f"epochs, accuracy of the best one on dev: mean, standard deviation and number of seeds. "
        f"Steps are of 32 examples. The last two columns are a text by itself, and each of "
        f"{settings['rows']} texts of {settings['tasks']} tasks that are there at once."
    )
    header = (
        *("", "accuracy", "trained parameters", "saved, kB", "training step, ms", "its peak, MiB"),
        *("one text, ms", "in a mixed batch, ms"),
    )
    yield Table("ways to adapt an encoder", header, rows, note)


def serving(results: Any) -> Iterator[Table]:
    """Rates, and what prompts and many tasks cost a batch."""
    rates = results["load"]["highest rate"]
    own = rates.get("ptv2")
    rows = [
        (SYSTEMS[name], f"{rate:.0f}", f"{own / rate:.2f}" if rate and own else "")
        for name, rate in rates.items()
    ]
    rows += [(SYSTEMS[name], "left out: " + why, "") for name, why in results["left out"].items()]
    settings = results["settings"]
    bound = f"99th percentile of at most {1000 * settings['bound']:.0f} ms"
    note = f"{settings['tasks']} tasks, {settings['texts']}, {bound}."
    yield Table("serving", ("", "requests a second", "ptv2 has times as many"), rows, note)
    seconds = results["engine"]["seconds"]
    rows = [
        (name, f"{1000 * value:.1f}", f"{value / seconds['bare']:.2f}")
        for name, value in seconds.items()
    ]
    yield Table("a batch of ptv2's engine", ("", "ms", "/ bare"), rows)


def quality(results: Any) -> Iterator[Table]:
    """Mean scores of every method by data set."""
    names = list(dict.fromkeys(run["method"] for run in results))
    rows = []
    for task in dict.fromkeys(run["task"] for run in results):
        cells, metric = [], ""
        for name in names:
            runs = [run for run in results if (run["task"], run["method"]) == (task, name)]
            scores = [run["score"] for run in runs if "score" in run]
            metric = next((run["metric"] for run in runs if "metric" in run), metric)
            spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
            refused = "refused" if any("refused" in run for run in runs) else ""
            cells.append(f"{mean(scores):.4f}{spread} ({len(scores)})" if scores else refused)
        rows.append((task, metric, *cells))
    yield Table("scores by data set", ("", "score", *names), rows)


def headline(results: Any) -> str:
    """The kernel in a sentence a type."""
    ratios: dict[str, list[tuple[float, float]]] = {}
    for problem in results["problems"].values():
        if found := fastest(problem):
            (_, forward), (_, both) = found
            ratios.setdefault(problem["problem"]["dtype"], []).append((forward, both))
    if not ratios:
        return "No rival was timed."
    missing = len(results["problems"]) - sum(map(len, ratios.values()))
    sentences = [
        f"In {dtype} ({len(pairs)} problems) the fastest rival takes "
        f"{geometric_mean(x for x, _ in pairs):.2f} times as long as ptv2 forward, and "
        f"{geometric_mean(x for _, x in pairs):.2f} times forward and backward (geometric means)."
        for dtype, pairs in ratios.items()
    ]
    if missing:
        sentences.append(f"No rival was timed for {missing} of the problems.")
    return " ".join(sentences)
