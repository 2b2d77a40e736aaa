"""Image classification, from files to answers."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as pillow
from transformers import AutoConfig, AutoModel, ViTImageProcessor
from transformers.image_utils import load_image
from typer.testing import CliRunner

from ptv2 import Predictor, PromptConfig, PromptModel
from ptv2.cli import app
from ptv2.tasks import Collator, ImageClassification
from ptv2.tasks.data import data_sha256

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


@pytest.fixture
def backbone(tmp_path):
    """A folder with a tiny ViT and its image processor."""
    config = AutoConfig.for_model(
        "vit", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=16, patch_size=4, initializer_range=0.2,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "vit")
    size = {"height": 16, "width": 16}
    ViTImageProcessor(size=size).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def rows(tmp_path):
    """Six images of each colour, of different sizes, one of them with a palette."""
    rows = []
    for number in range(6):
        for colour, value in COLOURS.items():
            path = tmp_path / f"{colour}-{number}.png"
            image = pillow.new("RGB", (10 + number, 20), value)
            (image.convert("P") if number == 5 else image).save(path)
            rows.append({"image": str(path), "label": colour})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(x) for x in arguments])


def test_from_the_command_line(backbone, rows, tmp_path):
    data = write(tmp_path / "data.jsonl", rows)
    output = tmp_path / "colours"
    command = ["train", "--backbone", backbone, "--task", "image-classification", "--train", data]
    command += ["--validation", data, "--output", output, "--prompt-length", 4, "--epochs", 6]
    command += ["--batch-size", 4]
    result = invoke(*command, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "trained parameters" in result.stdout
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    result = invoke("eval", "--prompt", output, "--data", data)
    assert result.exit_code == 0, result.stderr
    assert "1.0000" in result.stdout
    result = invoke("predict", "--prompt", output, "--text", rows[0]["image"])
    assert result.exit_code == 0, result.stderr
    line = json.loads(result.stdout.splitlines()[-1])
    assert line["image"] == rows[0]["image"]
    assert line["answers"]["colours"]["label"] == "red"
    refused = invoke(*command[:9], "--output", tmp_path / "packed", "--packing")
    assert refused.exit_code == 2
    assert "error: packing: images of one size need none" in refused.stderr


def test_images_of_datasets_and_in_memory(backbone, rows):
    """Bytes as well as paths; labels keep the order of a `ClassLabel`."""
    with open(rows[1]["image"], "rb") as file:
        images = [rows[0]["image"], {"bytes": file.read(), "path": None}]
    features = Features({"image": Image(), "label": ClassLabel(names=["red", "green", "blue"])})
    data = Dataset.from_dict({"image": images, "label": [0, 1]}, features=features)
    processor = ViTImageProcessor.from_pretrained(backbone)
    task = ImageClassification(processor).fit_labels(data)
    assert task.labels == ("red", "green", "blue")
    assert data_sha256(data) != data_sha256(data.select([1, 0]))
    prepared = list(task.prepare(data))
    batch = Collator(task)(prepared)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["labels"].tolist() == [0, 1]
    wanted = processor(pillow.new("RGB", (10, 20), COLOURS["green"]), return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"][1], wanted["pixel_values"][0])


def test_predictor(backbone, rows):
    model = PromptModel.from_pretrained(backbone)
    for name in ("first", "second"):
        model.add_task(name, PromptConfig("image-classification", tuple(COLOURS), prompt_length=3))
    answers = Predictor(model).predict([("first", rows[0]["image"]), ("second", rows[1]["image"])])
    for answer, name, row in zip(answers, ("first", "second"), rows, strict=False):
        pixels = ViTImageProcessor.from_pretrained(backbone)(
            pillow.open(row["image"]), return_tensors="pt"
        )
        logits = model.eval()(**pixels, task=name).logits[0].detach()
        assert answer["label"] == tuple(COLOURS)[int(logits.argmax())]
        assert answer["score"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-4)
    model.add_task("features", PromptConfig("feature-extraction"))
    with pytest.raises(NotImplementedError, match="task: the model itself gives features"):
        Predictor(model).predict([("features", rows[0]["image"])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image": "nowhere.png"},
            r"image_column: no image in example 1 \(line 2 of data.jsonl\)",
        ),
        ({"image": None}, r"image_column: example 1 \(line 2 of data.jsonl\) has no 'image'"),
        ({"label": ""}, r"label_column: expected names or integers from 0 as labels \(.*, got ''"),
    ],
)
def test_bad_data_is_refused_with_its_line(backbone, rows, tmp_path, change, message):
    rows[1] |= change
    data = write(tmp_path / "data.jsonl", rows)
    result = invoke(
        *("train", "--backbone", backbone, "--task", "image-classification", "--train", data),
        *("--validation", data, "--output", tmp_path / "run"),
    )
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_image(rows, tmp_path):
    place = tmp_path / "text.png"
    place.write_text("no image")
    data = Dataset.from_dict({"image": [str(place)], "label": ["red"]})
    with pytest.raises(ValueError, match="image_column: no image in example 0: cannot identify"):
        ImageClassification(None).prepare(data)
    numbers = Dataset.from_dict({"image": [x["image"] for x in rows], "label": [0.5] * 18})
    with pytest.raises(ValueError, match="label_column: expected one class an image, got numbers"):
        ImageClassification(None).fit_labels(numbers)


def test_images_are_turned_as_their_data_says(tmp_path):
    """A photograph that a camera has stored lying, as `datasets` and transformers read it."""
    image = pillow.new("RGB", (20, 10))
    image.paste((250, 250, 250), (0, 0, 10, 10))
    exif = pillow.Exif()
    exif[0x0112] = 6  # the top is on the right
    image.save(tmp_path / "photo.jpg", exif=exif)
    task = ImageClassification(ViTImageProcessor(size={"height": 16, "width": 16}), ("a", "b"))
    (feature,) = task.prepare_inputs([tmp_path / "photo.jpg"])
    got = task.sequences(feature)[0]["pixel_values"]
    upright = load_image(str(tmp_path / "photo.jpg"))
    expected = task.tokenizer(upright, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(got, expected)
    assert got[0, 0].mean() > got[0, -1].mean()


def test_images_that_pillow_would_clip_or_refuse(tmp_path, monkeypatch):
    place = tmp_path / "deep.png"
    pillow.new("I;16", (8, 8), 30000).save(place)
    task = ImageClassification(None)
    with pytest.raises(ValueError, match=r"expected 8 bits a channel in input 0, got mode I"):
        task.prepare_inputs([place])
    pillow.new("RGB", (64, 64)).save(place)
    monkeypatch.setattr(pillow, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="no image in input 0: Image size"):
        task.prepare_inputs([place])


def test_images_that_cannot_be_read(rows, tmp_path):
    """A file that ends too soon has its head; it is named when a batch needs it."""
    whole = Path(rows[0]["image"]).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 30])
    data = Dataset.from_dict({"image": [str(tmp_path / "cut.png")], "label": ["red"]})
    task = ImageClassification(ViTImageProcessor(size={"height": 16, "width": 16}), ("red", "a"))
    (feature,) = task.prepare(data)
    with pytest.raises(ValueError, match=r"image_column: the image .*cut\.png cannot be read"):
        task.sequences(feature)
    nothing = Dataset.from_dict({"image": [{"bytes": None, "path": None}], "label": ["red"]})
    with pytest.raises(ValueError, match="image_column: expected bytes or a path in example 0"):
        task.prepare(nothing)
    with pytest.raises(ValueError, match="image_column: expected one of the data's columns"):
        task.prepare(data.rename_column("image", "picture"))
