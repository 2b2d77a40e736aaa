"""What a prompt is: its task, its size and how it is parametrised."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from torch import nn

Task = Literal[
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "image-classification",
    "feature-extraction",
]
Parametrization = Literal["direct", "mlp", "lstm"]
Injection = Literal["key-value", "hidden-state"]
Depth = Literal["layers", "input"]
Pooling = Literal["mean", "first", "last"]
Activation = Literal["tanh", "gelu"]

_LABELLED = ("sequence-classification", "token-classification", "image-classification")
_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}")


@dataclass(frozen=True)
class PromptConfig:
    """Configuration of one task's prompt and head.

    Args:
        task: what the head computes; "feature-extraction" has none.
        labels: names of the classes or tags, in the order of the logits. A sequence
            classification with one label is a regression, unless it is `multi_label`.
        prompt_length: trained keys and values per layer; 0 trains the head alone.
        parametrization: "direct" trains the prompt itself; "mlp" computes it from an embedding
            per prompt position through a two-layer network, "lstm" through a recurrent one over
            the positions. Either is folded away on saving.
        depth: "layers" puts a prompt into every layer; "input", for comparison, once before the
            text's embeddings: prompt tuning (Lester et al. 2021, arXiv:2104.08691), or P-tuning
            (Liu et al. 2021, arXiv:2103.10385) if computed by "lstm" or "mlp". Its batches are
            padded and of one task.
        injection: "key-value" trains keys and values (the official form); "hidden-state" trains
            hidden states that the layer's own frozen projections turn into keys and values.
        layers: which layers carry a prompt, counted from 0. None: all.
        init_std: standard deviation of the prompt at the start.
        prompt_dropout: dropout on the prompt while training, one mask a step for the whole batch.
        pooling: what a sequence's head sees: the mean of its token states, the "first" or "last".
        head_dropout: dropout before each linear layer of the head while training.
        head_activation: the head has a hidden layer of the backbone's size with this activation,
            as those of transformers' models do. None: it is one linear layer.
        multi_label: whether a sequence has any number of the labels instead of one.
        no_answer: whether a question may have no answer, as in SQuAD 2.0.
        network_size: width of the network of the "mlp" or "lstm" parametrisation, for which it is
            even.
        position_offset: position of a sequence's first token, where what a prompt was imported
            from counts the prompt's own positions; that many fewer are left for tokens.
        token_types: whether token_type_ids reach the backbone; False for prompts from systems that
            drop them.
        gate: whether a learned gate for each prompt row and head multiplies the exponential of
            its attention score. Gates start at 0, so that training starts from the bare backbone.

    Raises:
        ValueError: a field has a value outside of its range.
    """

    task: Task
    labels: tuple[str, ...] = ()
    prompt_length: int = 32
    parametrization: Parametrization = "direct"
    injection: Injection = "key-value"
    depth: Depth = "layers"
    layers: tuple[int, ...] | None = None
    init_std: float = 1.0
    prompt_dropout: float = 0.0
    pooling: Pooling = "mean"
    head_dropout: float = 0.1
    head_activation: Activation | None = None
    network_size: int = 512
    gate: bool = False
    position_offset: int = 0
    token_types: bool = True
    multi_label: bool = False
    no_answer: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            raise ValueError(f"labels: expected a tuple of names, got the text {self.labels!r}")
        for name in ("labels", "layers"):
            values = getattr(self, name)
            if isinstance(values, Sequence):
                object.__setattr__(self, name, tuple(values))
            elif name == "labels" or values is not None:
                raise ValueError(f"{name}: expected a list or tuple, got {values!r}")
        _one_of("task", self.task, get_args(Task))
        _one_of("parametrization", self.parametrization, get_args(Parametrization))
        _one_of("injection", self.injection, get_args(Injection))
        _one_of("depth", self.depth, get_args(Depth))
        _one_of("pooling", self.pooling, get_args(Pooling))
        if self.head_activation is not None:
            _one_of("head_activation", self.head_activation, get_args(Activation))
        if self.task in _LABELLED and not self.labels:
            raise ValueError(f"labels: expected at least one for {self.task}, got none")
        if self.task not in _LABELLED and self.labels:
            raise ValueError(f"labels: expected none for {self.task}, got {self.labels}")
        for name in ("multi_label", "no_answer", "gate", "token_types"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if self.multi_label and self.task != "sequence-classification":
            raise ValueError(f"multi_label: expected False for {self.task}, got True")
        if self.no_answer and self.task != "question-answering":
            raise ValueError(f"no_answer: expected False for {self.task}, got True")
        if not all(isinstance(label, str) for label in self.labels):
            raise ValueError(f"labels: expected strings, got {self.labels}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels: expected distinct names, got {self.labels}")
        if self.layers is not None and (
            not all(type(layer) is int and layer >= 0 for layer in self.layers)
            or sorted(set(self.layers)) != list(self.layers)
        ):
            raise ValueError(f"layers: expected ascending layer numbers, got {self.layers}")
        for name, minimum in (("prompt_length", 0), ("network_size", 1), ("position_offset", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < minimum:
                raise ValueError(f"{name}: expected an int of at least {minimum}, got {value!r}")
        if self.depth == "input":
            self._check_input_prompt()
        if self.parametrization == "lstm" and self.network_size % 2:
            raise ValueError(f"network_size: expected an even int, got {self.network_size}")
        for name in ("init_std", "prompt_dropout", "head_dropout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}: expected a number, got {value!r}")
        if not 0 <= self.init_std < float("inf"):
            raise ValueError(f"init_std: expected a finite number >= 0, got {self.init_std}")
        for name in ("prompt_dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a value in [0, 1), got {getattr(self, name)}")

    def _check_input_prompt(self) -> None:
        expected = {
            "injection": "key-value",
            "layers": None,
            "gate": False,
            "position_offset": 0,
        }
        for name, value in expected.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}: expected {value!r} with depth 'input', got {getattr(self, name)!r}"
                )

    @property
    def positions(self) -> int:
        """How many positions of the backbone the prompt takes from its sequences."""
        return self.prompt_length if self.depth == "input" else self.position_offset

    @property
    def label2id(self) -> dict[str, int]:
        """Label name to its index in the logits."""
        return {label: index for index, label in enumerate(self.labels)}

    @property
    def folds(self) -> bool:
        """Whether the trained parameters differ from the keys and values they give."""
        return (self.parametrization, self.injection) != ("direct", "key-value")

    def folded(self) -> "PromptConfig":
        """The configuration of the same prompt given by its keys and values alone."""
        return replace(self, parametrization="direct", injection="key-value")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary that `from_dict` takes back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PromptConfig":
        """Build a configuration; an unknown or missing field is a ValueError."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"prompt config: unknown fields {sorted(unknown)}")
        if "task" not in values:
            raise ValueError("prompt config: the field 'task' is missing")
        return cls(**values)


def check_task_name(name: str) -> None:
    """Raise a ValueError unless name can name a task, a file and a module."""
    if not isinstance(name, str) or not _TASK_NAME.fullmatch(name):
        raise ValueError(
            "name: expected letters, digits, '-' and '_', at most 200, a letter or digit first, "
            f"got {reprlib.repr(name)}"
        )
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"name: torch's modules have a member {name!r}, expected another name")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
