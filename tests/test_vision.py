"""Encoders of images, and CLIP with prompts in both encoders, against the textbook forms."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel
from typer.testing import CliRunner

import ptv2.clip
from ptv2 import ClipPromptModel, PromptConfig, PromptModel, UnknownTaskError
from ptv2.cli import app
from ptv2.families import family_of
from ptv2.layout import Padded
from tests.textbook_model import inject_process_slice, states_with_prompt

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 12,
    "patch_size": 4,
    "initializer_range": 0.2,
}
FEATURES = PromptConfig("feature-extraction", prompt_length=5)
CLASSES = PromptConfig("image-classification", ("cat", "dog", "fish"), prompt_length=4)


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(params=["vit", "clip_vision_model"])
def backbone(request):
    return randomised(AutoModel.from_config(AutoConfig.for_model(request.param, **SIZES)))


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 12, 12)


@torch.no_grad()
def test_bare_backbone_equals_stock(backbone, pixels):
    expected = backbone(pixels).last_hidden_state
    model = PromptModel(copy.deepcopy(backbone)).eval()
    model.add_task("closed", PromptConfig("feature-extraction", prompt_length=3, gate=True))
    for task in (None, "closed", [None, "closed", None]):
        got = model(pixel_values=pixels, task=task).last_hidden_state
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_mixed_tasks_equal_concatenation(backbone, pixels):
    model = PromptModel(copy.deepcopy(backbone)).eval()
    model.add_task("classes", CLASSES)
    model.add_task("features", FEATURES)
    tasks = ["features", "classes", None]
    out = model(pixel_values=pixels, task=tasks)
    for row, task in enumerate(tasks):
        prompts = [None] * 3 if task is None else model.key_value(task)
        wanted = states_with_prompt(backbone, {"pixel_values": pixels[row : row + 1]}, prompts)
        torch.testing.assert_close(out.last_hidden_state[row], wanted[0], rtol=0, atol=1e-5)
        if task == "classes":
            logits = model.heads["classes"](wanted, Padded(None))[0]
            torch.testing.assert_close(out.logits[row], logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_hidden_state_injection(backbone, pixels):
    model = PromptModel(copy.deepcopy(backbone)).eval()
    config = PromptConfig("feature-extraction", prompt_length=3, injection="hidden-state")
    model.add_task("states", config)
    got = model(pixel_values=pixels[:1], task="states").last_hidden_state
    layers = family_of(backbone.config.model_type).layers(backbone)
    prompts = list(model.prompts["states"].embedding)
    expected = inject_process_slice(backbone, layers, {"pixel_values": pixels[:1]}, prompts)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trains_and_compiles(backbone, pixels, checkpointing):
    model = PromptModel(backbone)
    model.add_task("classes", CLASSES)
    module = model.for_task("classes").train()
    if checkpointing:
        module.gradient_checkpointing_enable()
    labels = torch.tensor([0, 1, 2])
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = module(pixel_values=pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    torch._dynamo.reset()
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = model(pixel_values=pixels, task="classes").logits
        torch.testing.assert_close(compiled(pixel_values=pixels, task="classes").logits, expected)


def test_saved_and_loaded(backbone, pixels, tmp_path):
    model = PromptModel(backbone).eval()
    model.add_task("classes", CLASSES)
    model.save_task("classes", tmp_path / "classes")
    model.load_task(tmp_path / "classes", "again")
    logits = [model(pixel_values=pixels, task=task).logits for task in ("classes", "again")]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.ones(1, 3).long()}, "pixel_values: expected pixel_values, got input"),
        ({}, "pixel_values: expected pixel_values, got none"),
        ({"pixel_values": torch.ones(0, 3, 12, 12)}, "pixel_values: expected at least one row"),
        (
            {"pixel_values": torch.ones(1, 3, 12, 12), "cu_seqlens": torch.tensor([0, 1]).int()},
            "cu_seqlens: images of one size need no packing",
        ),
    ],
)
def test_inputs_that_are_refused(backbone, arguments, message):
    with pytest.raises(ValueError, match=message):
        PromptModel(backbone)(**arguments, task=None)


def test_tasks_that_do_not_fit_are_refused(backbone, tiny_backbone):
    with pytest.raises(ValueError, match="task: expected image-classification or feature-ex"):
        PromptModel(backbone).add_task("tag", PromptConfig("token-classification", ("a", "b")))
    texts = PromptModel(tiny_backbone("clip_text_model"))
    with pytest.raises(ValueError, match="task: expected a task on texts or feature-extraction"):
        texts.add_task("classes", CLASSES)
    with pytest.raises(ValueError, match="pooling: expected 'last' or 'mean', got 'first'"):
        texts.add_task(
            "mood", PromptConfig("sequence-classification", ("a", "b"), pooling="first")
        )


@pytest.fixture
def clip():
    text = {k: x for k, x in SIZES.items() if k not in ("image_size", "patch_size")}
    text |= {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49}
    config = CLIPConfig(
        text_config=text | {"initializer_factor": 4.0}, vision_config=SIZES, projection_dim=8
    )
    torch.manual_seed(3)
    config._name_or_path = "somewhere"
    return randomised(CLIPModel(config))


@pytest.fixture
def texts():
    ids = torch.randint(1, 48, (2, 7))
    mask = torch.arange(7) < torch.tensor([7, 4])[:, None]
    ids[0, 6] = ids[1, 3] = 49
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def textbook_features(tower, inputs, prompts, last):
    """The pooled state of one row."""
    states = states_with_prompt(tower, inputs, prompts)[0]
    return states[-1] if last else tower.post_layernorm(states[0])


@torch.no_grad()
def test_scores_with_prompts_in_both_encoders(clip, texts, pixels):
    """Row by row, with prompts concatenated to the keys and values of the stock encoders."""
    model = ClipPromptModel(copy.deepcopy(clip)).eval()
    model.add_task("both", FEATURES, FEATURES)
    model.add_task("images", images=PromptConfig("feature-extraction", prompt_length=2))
    text_tasks, image_tasks = ["both", None], ["images", "both", None]
    out = model(**texts, pixel_values=pixels, text_task=text_tasks, image_task=image_tasks)
    embeds = []
    for row, task in enumerate(text_tasks):
        length = int(texts["attention_mask"][row].sum())
        inputs = {"input_ids": texts["input_ids"][row : row + 1, :length]}
        prompts = [None] * 3 if task is None else model.text.key_value(task)
        state = textbook_features(clip.text_model, inputs, prompts, last=True)
        embeds.append(clip.text_projection(state))
    for row, task in enumerate(image_tasks):
        inputs = {"pixel_values": pixels[row : row + 1]}
        prompts = [None] * 3 if task is None else model.images.key_value(task)
        state = textbook_features(clip.vision_model, inputs, prompts, last=False)
        embeds.append(clip.visual_projection(state))
    embeds = torch.stack([x / x.norm() for x in embeds])
    scores = embeds[:2] @ embeds[2:].T * clip.logit_scale.exp()
    torch.testing.assert_close(out.logits_per_text, scores, rtol=0, atol=1e-5)
    assert torch.equal(out.logits_per_image, out.logits_per_text.T)


@torch.no_grad()
def test_without_prompts_clip_is_the_stock_one(clip, texts, pixels):
    expected = clip(**texts, pixel_values=pixels[:2], return_loss=True)
    model = ClipPromptModel(copy.deepcopy(clip)).eval()
    inputs = {**texts, "pixel_values": pixels[:2], "text_task": None, "image_task": None}
    got = model(**inputs, return_loss=True)
    for name in ("logits_per_image", "loss", "text_embeds", "image_embeds"):
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-5)


def test_the_contrastive_loss_trains_both_prompts(clip, texts, pixels, tmp_path):
    model = ClipPromptModel(clip).train()
    model.add_task("task", FEATURES, FEATURES)
    inputs = {**texts, "pixel_values": pixels[:2], "text_task": "task", "image_task": "task"}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {"text.prompts.task.embedding", "images.prompts.task.embedding"}
    optimizer = torch.optim.Adam(trained.values(), lr=0.03)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**inputs, return_loss=True).loss
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in trained.values())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2

    model.eval().save_task("task", tmp_path / "task")
    assert model.load_task(tmp_path / "task", "again") == "again"
    again = inputs | {"text_task": "again", "image_task": "again"}
    scores = [model(**x).logits_per_image for x in (inputs, again)]
    assert torch.equal(*scores)
    assert set(model.state_dict()) == {
        f"{part}.prompts.{name}.embedding"
        for part in ("text", "images")
        for name in ("task", "again")
    }


def test_what_clip_refuses(clip, texts, pixels, tmp_path):
    model = ClipPromptModel(clip)
    with pytest.raises(
        ValueError, match="text: expected a configuration for text, images or both"
    ):
        model.add_task("task")
    with pytest.raises(ValueError, match="images: expected feature-extraction, got image-class"):
        model.add_task("task", FEATURES, CLASSES)
    model.add_task("task", images=FEATURES)
    with pytest.raises(ValueError, match="name: task 'task' exists already"):
        model.add_task("task", FEATURES, FEATURES)
    assert not model.text.tasks
    with pytest.raises(UnknownTaskError, match="task: 'task' is unknown"):
        model(**texts, pixel_values=pixels, text_task="task", image_task=None)
    with pytest.raises(ValueError, match="image_task: expected 3 names, one a row, got 1"):
        model(**texts, pixel_values=pixels, text_task=None, image_task=["task"])
    with pytest.raises(ValueError, match="task: 'none' is unknown; the model's tasks are: task"):
        model.save_task("none", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"directory: expected clip\.json"):
        model.load_task(tmp_path)
    for text in ("{", "[]", '{"name": "a", "parts": ["sound"]}', '{"parts": []}'):
        (tmp_path / "clip.json").write_text(text)
        with pytest.raises(ValueError, match=r"clip\.json: expected a name and parts"):
            model.load_task(tmp_path)
    nothing = {name: x[:0] for name, x in texts.items()}
    with pytest.raises(ValueError, match="text_task: expected at least one row, got none"):
        model(**nothing, pixel_values=pixels, text_task=None, image_task=None)


def test_clip_saves_a_task_in_one_step(clip, tmp_path):
    model = ClipPromptModel(clip)
    model.add_task("both", FEATURES, FEATURES)
    model.add_task("texts", FEATURES)
    model.save_task("both", tmp_path / "saved")
    before = model.images.key_value("both").clone()
    model.images.prompts["both"].embedding.data[0] = float("nan")
    with pytest.raises(ValueError, match="expected finite values"):
        model.save_task("both", tmp_path / "saved")
    model.remove_task("both")
    assert not model.images.tasks
    assert list(model.text.tasks) == ["texts"]
    model.load_task(tmp_path / "saved")
    assert torch.equal(model.images.key_value("both"), before)

    model.save_task("texts", tmp_path / "saved")  # in the place of a task for both
    other = ClipPromptModel(clip)
    assert other.load_task(tmp_path / "saved", "alone") == "alone"
    assert (list(other.text.tasks), list(other.images.tasks)) == (["alone"], [])
    card = (tmp_path / "saved" / "text" / "README.md").read_text()
    assert "ClipPromptModel.from_pretrained('somewhere')" in card
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "saved")])
    assert shown.exit_code == 0
    assert shown.stdout.count("somewhere (clip_text_model)") == 1


def test_parts_of_one_save(clip, tmp_path, monkeypatch):
    """Another save between the reading of two parts: the new one is read as a whole."""
    model, other, saved = ClipPromptModel(clip), ClipPromptModel(clip), tmp_path / "saved"
    for each in (model, other):
        each.add_task("both", FEATURES, FEATURES)
    model.save_task("both", saved)
    read = ptv2.clip.read_asset

    def read_beside_a_save(directory, part):
        asset = read(directory, part)
        if part == "text":
            other.save_task("both", saved)
        return asset

    with monkeypatch.context() as patch:
        patch.setattr("ptv2.clip.read_asset", read_beside_a_save)
        model.load_task(saved, "loaded")
    for encoder, its in ((model.text, other.text), (model.images, other.images)):
        assert torch.equal(encoder.key_value("loaded"), its.key_value("both"))
    index = json.loads((saved / "clip.json").read_text())
    index["sha256"]["text"] = "0" * 64
    (saved / "clip.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"clip\.json: corrupt, its parts are of another save"):
        model.load_task(saved, "again")
    (tmp_path / "mine" / "text").mkdir(parents=True)
    (tmp_path / "mine" / "text" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"text has a README\.md that a save would"):
        model.save_task("both", tmp_path / "mine")


def test_what_clip_would_ignore_is_refused_however_it_came(clip, texts, pixels, tmp_path):
    model = ClipPromptModel(clip)
    shifted = PromptConfig("feature-extraction", prompt_length=2, position_offset=3)
    model.text.add_task("task", shifted)
    with pytest.raises(ValueError, match="text: expected position_offset 0, got 3"):
        model(**texts, pixel_values=pixels, text_task="task", image_task=None)
    model.save_task("task", tmp_path / "saved")
    model.remove_task("task")
    with pytest.raises(ValueError, match="text: expected position_offset 0, got 3"):
        model.load_task(tmp_path / "saved")
    assert not model.text.tasks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_offset": 3}, "position_offset: the backbone adds no positions"),
        ({"token_types": False}, "token_types: images have none"),
    ],
)
def test_images_have_no_positions_and_types(backbone, changes, message):
    config = PromptConfig("feature-extraction", prompt_length=2, **changes)
    with pytest.raises(ValueError, match=message):
        PromptModel(backbone).add_task("task", config)
