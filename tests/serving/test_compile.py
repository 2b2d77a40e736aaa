"""The compiled encoder: the answers of the plain one, and nothing compiled once it is warm."""

import random
import sys

import pytest
import torch
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from ptv2.cli import app
from ptv2.serving import Engine, Service
from ptv2.serving.backbone import LaidOutLinear, load_backbone
from tests.serving.test_engine import make_model, sequences, serve  # noqa: F401
from tests.serving.work import CONFIGS, PATIENCE, TEXT, new_service

CPU = torch.device("cpu")


@pytest.fixture
def compiled(monkeypatch):
    """How often anything is compiled; dynamo traces, and torch runs what it has traced."""
    compile = torch.compile
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", lambda *a, **o: compile(*a, **o, backend="eager"))
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@torch.no_grad()
@pytest.mark.parametrize("family", ["bert", "albert", "modernbert"])
def test_batches_of_any_kind_need_no_other_code(make_model, compiled, family):  # noqa: F811
    """One sequence or many, few tasks or all, prompts in some layers, gates, no prompt at all."""
    model = make_model(family)
    if family == "modernbert":
        model.remove_task("answers")  # takes no positions that an offset could move
    served = serve(model)
    engine, plain = Engine(model, compile=True), Engine(model)
    engine.warm_up(sequences([3, 4]))
    warm, draw = compiled(), random.Random(0)
    assert warm
    drawn = [[draw.choice(list(served))] * draw.randint(1, 3) for _ in range(20)]
    drawn += [draw.choices(list(served), k=draw.randint(2, 9)) for _ in range(20)]
    for names in [[x] for x in served] + drawn:
        rows = sequences([draw.randint(2, 30) for _ in names], draw.randrange(100))
        tasks = [served[name] for name in names]
        for a, b in zip(engine.run(tasks, rows), plain.run(tasks, rows), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert compiled() == warm


def test_a_service_is_warm_before_it_takes_requests(work, compiled):
    served = new_service(work, model=load_backbone(work / "encoder", CPU), compile=True)
    plain = new_service(work)
    warm = compiled()
    assert warm
    for name in CONFIGS:
        if name in ("reader", "choice"):
            continue
        (found,), (expected,) = (x.answer(name, [TEXT, "a film"])[:1] for x in (served, plain))
        for a, b in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert compiled() == warm
    assert served.close(PATIENCE)
    assert plain.close(PATIENCE)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # inductor's own
@torch.no_grad()
def test_generated_code_gives_the_same(make_model):  # noqa: F811
    """By inductor, as in use."""
    torch._dynamo.reset()
    counters.clear()
    model = make_model("bert")
    served = list(serve(model).values())
    engine, plain = Engine(model, compile=True), Engine(model)
    engine.warm_up(sequences([3, 4]))
    warm = counters["stats"]["unique_graphs"]
    assert warm
    for lengths in ([5], [9, 2, 17], [4, 30, 8, 1]):
        rows = sequences(lengths)
        tasks = served[: len(rows)]
        for a, b in zip(engine.run(tasks, rows), plain.run(tasks, rows), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == warm


def test_the_command_asks_for_it(work, monkeypatch):
    given = {}
    module = sys.modules["ptv2.cli.serve"]
    monkeypatch.setattr(
        module, "Service", lambda model, **options: sys.exit(given.update(options))
    )
    command = ["serve", "--backbone", str(work / "encoder"), "--prompts", str(work / "prompts")]
    for more in ([], ["--compile"]):
        assert CliRunner().invoke(app, [*command, *more]).exit_code == 0
        assert given["compile"] is bool(more)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16"
)
def test_weights_in_onednns_layout_are_refused(work):
    model = load_backbone(work / "encoder", CPU, "bf16")
    assert any(isinstance(x, LaidOutLinear) for x in model.backbone.modules())
    with pytest.raises(NotImplementedError, match="compile: bf16 on a CPU"):
        Service(model, compile=True)
