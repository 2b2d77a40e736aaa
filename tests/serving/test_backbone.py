"""The encoder as a server loads it, beside the model itself."""

import pytest
import torch

from ptv2 import PromptModel
from ptv2.serving import Engine
from ptv2.serving.backbone import LaidOutLinear, load_backbone
from tests.serving.work import CONFIGS, PATIENCE, TEXT, new_service

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2)])
def test_answers_are_those_of_the_model(work, dtype, tolerance):
    served = new_service(work, model=load_backbone(work / "encoder", CPU, dtype))
    plain = new_service(work)
    for name in CONFIGS:
        if name in ("reader", "choice"):
            continue
        (found,), (expected,) = (x.answer(name, [TEXT, "a film"])[:1] for x in (served, plain))
        for a, b in zip(found.logits, expected.logits, strict=True):
            torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)
    assert served.close(PATIENCE)
    assert plain.close(PATIENCE)


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16"
)
def test_all_linear_layers_are_laid_out_and_the_prompts_still_fit(work):
    model, plain = (
        load_backbone(work / "encoder", CPU, "bf16"),
        PromptModel.from_pretrained(work / "encoder", dtype=torch.bfloat16),
    )
    kinds = {type(x) for x in model.backbone.modules() if isinstance(x, torch.nn.Linear)}
    assert kinds == {LaidOutLinear}
    assert model.identity.describe() == plain.identity.describe()
    assert model.backbone.state_dict().keys() == plain.backbone.state_dict().keys()
    assert Engine(model).model is model


def test_an_unknown_dtype(work):
    with pytest.raises(ValueError, match="dtype: expected one of fp32, bf16, fp16, got 'int8'"):
        load_backbone(work / "encoder", CPU, "int8")
