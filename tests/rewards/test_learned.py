"""Rewards on CLIP against the network written out in `reward_models`, and against the originals' preprocessing."""

import math
import shutil

import pytest
import torch
from PIL import Image
from reward_models import CONTEXT, SIDE, clip_config, clip_folder, clip_state, image_embedding, text_embedding, tokenizer_files
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from rlcm.builtin import model_path
from rlcm.errors import MissingFileError, RewardError, WeightsError
from rlcm.rewards import RewardMix
from rlcm.rewards.image.pixels import to_uint8
from rlcm.rewards.learned import Aesthetic, ClipScore, HumanPreference, PickScore
from rlcm.rewards.learned.aesthetic import aesthetic_head
from rlcm.rewards.learned.alignment import Alignment
from rlcm.rewards.learned.clip import standardise
from rlcm.rewards.learned.open_clip import from_open_clip

CPU = {"device": "cpu"}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    return path, clip_folder(path)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """An aesthetic predictor for embeddings of 24 numbers, with the layer numbers of the published file."""
    generator = torch.Generator().manual_seed(5)
    sizes = {0: (24, 10), 2: (10, 8), 4: (8, 6), 6: (6, 4), 7: (4, 1)}
    state = {}
    for layer, (inputs, outputs) in sizes.items():
        state[f"layers.{layer}.weight"] = torch.randn(outputs, inputs, generator=generator)
        state[f"layers.{layer}.bias"] = torch.randn(outputs, generator=generator)
    path = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(state, path)
    return path, state


@pytest.fixture
def pictures():
    return torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def open_clip_file(tmp_path):
    """The same model as `folder`, as HPS publishes it."""
    base = tmp_path / "base"
    base.mkdir()
    clip_config().save_pretrained(base)
    tokenizer_files(base)
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{name}": value for name, value in clip_state().items()}}, tmp_path / "hps.pt"
    )
    return tmp_path / "hps.pt", base


def expected_cosine(state, pixels, prompts):
    return (image_embedding(state, pixels) * text_embedding(state, prompts)).sum(-1)


def test_alignment(folder, pictures, prompts):
    path, state = folder
    scores = Alignment(path=str(path), **CPU)(pictures, prompts)
    torch.testing.assert_close(scores, expected_cosine(state, 2 * pictures - 1, prompts), rtol=1e-4, atol=1e-5)


def test_clipscore(folder, pictures, prompts):
    path, state = folder
    scores = ClipScore(model=str(path), prefix="a photo ", **CPU)(pictures, prompts)
    cosine = expected_cosine(state, standardise(pictures), ["a photo " + prompt for prompt in prompts])
    torch.testing.assert_close(scores, 2.5 * cosine.clamp(min=0), rtol=1e-4, atol=1e-5)


def test_pickscore(folder, pictures, prompts):
    path, state = folder
    scores = PickScore(model=str(path), **CPU)(pictures, prompts)
    expected = torch.tensor(3.0).exp() * expected_cosine(state, standardise(pictures), prompts)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_human_preference(folder, open_clip_file, pictures, prompts, kind):
    file, base = open_clip_file
    model = file if kind == "open_clip" else folder[0]
    scores = HumanPreference(model=str(model), sha256=None, base=str(base), **CPU)(pictures, prompts)
    torch.testing.assert_close(scores, expected_cosine(folder[1], standardise(pictures), prompts), rtol=1e-4, atol=1e-5)


def test_aesthetic(folder, head, pictures, prompts):
    (path, state), (file, layers) = folder, head
    scores = Aesthetic(model=str(file), sha256=None, clip=str(path), **CPU)(pictures, prompts)
    x = image_embedding(state, standardise(pictures))
    for layer in (0, 2, 4, 6, 7):
        x = x @ layers[f"layers.{layer}.weight"].T + layers[f"layers.{layer}.bias"]
    torch.testing.assert_close(scores, x[:, 0], rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["alignment", "clipscore", "pickscore", "hps", "aesthetic"])
def make(request, folder, head):
    path = str(folder[0])
    return {
        "alignment": lambda **kw: Alignment(path=path, **{**CPU, **kw}),
        "clipscore": lambda **kw: ClipScore(model=path, prefix="", **{**CPU, **kw}),
        "pickscore": lambda **kw: PickScore(model=path, **{**CPU, **kw}),
        "hps": lambda **kw: HumanPreference(model=path, base=path, sha256=None, **{**CPU, **kw}),
        "aesthetic": lambda **kw: Aesthetic(model=str(head[0]), sha256=None, clip=path, **{**CPU, **kw}),
    }[request.param]


def test_batch_size_changes_nothing(make, images, prompts):
    whole = make(batch_size=5)(images, prompts)
    for size in (1, 2):
        torch.testing.assert_close(make(batch_size=size)(images, prompts), whole, rtol=1e-5, atol=1e-5)
    assert whole.shape == (5,)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_near(make, pictures, prompts, dtype):
    exact, near = make()(pictures, prompts), make(dtype=dtype)(pictures, prompts)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.1, atol=0.1 * exact.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (20, 45), (70, 33)])
def test_shapes_dtypes_and_devices_of_images(make, prompts, shape, dtype, device):
    levels = torch.randint(0, 256, (5, 3, *shape), generator=torch.Generator().manual_seed(2))
    rounded = (levels / 255).to(dtype)
    scores = make(device=device)(rounded.to(device), prompts)
    assert scores.shape == (5,)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.cpu(), make()(rounded.float(), prompts), rtol=1e-4, atol=1e-4)


def published_cosine(folder, images, prompts):
    """As the originals do it: 8-bit pictures through CLIP's own processor, and the whole model of transformers."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    files = [Image.fromarray(level) for level in to_uint8(images)]
    tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        found = model(**tokens, pixel_values=processor(images=files, return_tensors="pt")["pixel_values"])
    return (found.image_embeds * found.text_embeds).sum(-1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 70), (80, 41), (SIDE, SIDE)])
def test_scores_are_those_of_the_original_preprocessing(folder, prompts, height, width):
    levels = torch.randint(0, 256, (5, 3, height, width), generator=torch.Generator().manual_seed(1))
    path = str(folder[0])
    cosine = published_cosine(path, levels / 255, prompts)
    # The originals round to 256 levels after resizing, which moves a cosine of this model by less than .01.
    tolerance = 1e-5 if (height, width) == (SIDE, SIDE) else 0.01
    scores = ClipScore(model=path, prefix="", weight=1.0, **CPU)(levels / 255, prompts)
    torch.testing.assert_close(scores, cosine.clamp(min=0), rtol=0, atol=tolerance)
    picked = PickScore(model=path, **CPU)(levels / 255, prompts)
    torch.testing.assert_close(picked, math.exp(3) * cosine, rtol=0, atol=math.exp(3) * tolerance)


def test_gradient(make, pictures, prompts):
    # Along the gradient itself the difference quotient is the gradient's length; float32 leaves a per cent. CLIPScore has a
    # kink at 0, so scores near it are left out.
    reward = make()
    x = (0.25 + 0.5 * pictures).requires_grad_()
    total = RewardMix([("r", reward)]).differentiable(x, prompts).total
    kept = total.detach().abs() > 0.05
    assert kept.sum() >= 2
    (gradient,) = torch.autograd.grad(total[kept].sum(), x)
    assert gradient[kept].flatten(1).norm(dim=1).gt(0).all()
    direction = gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (reward(x + s * 0.004 * direction, prompts)[kept].double().sum() for s in (1, -1))
    assert ((ahead - behind) / 0.008).item() == pytest.approx(gradient.norm().item(), rel=0.03)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"dtype": "int8"}, {"device": "gpu"}])
def test_arguments_out_of_range(make, arguments):
    arguments = {"device": "cpu", **arguments} if "device" in arguments else arguments
    with pytest.raises((ValueError, TypeError), match=r"batch_size|dtype|device"):
        make(**arguments)


def test_weights_are_checked(folder, head, tmp_path, pictures, prompts):
    with pytest.raises(RewardError, match="sha256"):
        Aesthetic(model=str(head[0]), sha256="0" * 64, clip=str(folder[0]), **CPU)(pictures, prompts)
    torch.save({"layers.0.weight": torch.ones(1, 24), "other": torch.ones(1)}, tmp_path / "wrong.pth")
    with pytest.raises(RewardError, match="not the tensors of an aesthetic predictor"):
        Aesthetic(model=str(tmp_path / "wrong.pth"), sha256=None, clip=str(folder[0]), **CPU)(pictures, prompts)


def test_tensors_that_do_not_fit_are_named(open_clip_file, tmp_path, pictures, prompts):
    state = clip_state()
    del state["ln_final.bias"]
    torch.save(state | {"surprise": torch.ones(1)}, tmp_path / "wrong.pt")
    reward = HumanPreference(model=str(tmp_path / "wrong.pt"), sha256=None, base=str(open_clip_file[1]), **CPU)
    with pytest.raises(RewardError, match=r"final_layer_norm\.bias.*surprise"):
        reward(pictures, prompts)


def test_translation_keeps_every_tensor():
    state = clip_state()
    found = from_open_clip(state)
    assert sum(value.numel() for value in found.values()) == sum(value.numel() for value in state.values())


def test_a_folder_without_a_model(tmp_path, pictures, prompts):
    with pytest.raises(MissingFileError, match="no CLIP model"):
        Alignment(path=str(tmp_path), **CPU)(pictures, prompts)


def test_a_folder_without_all_weights(tmp_path, pictures, prompts):
    folder = shutil.copytree(model_path("clip"), tmp_path / "clip")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert Alignment(path=str(folder), **CPU)(pictures, prompts).isfinite().all()
    for match, changed in {
        r"lacks weights of its CLIPModel, which would be random: visual_projection": {
            key: tensor for key, tensor in tensors.items() if "visual_projection" not in key
        },
        "NaN": tensors | {"logit_scale": torch.tensor(torch.nan, dtype=tensors["logit_scale"].dtype)},
        r"damaged, or are not those of its config\.json": tensors | {"logit_scale": torch.ones(3, 3)},
    }.items():
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=match):
            Alignment(path=str(folder), **CPU)(pictures, prompts)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="damaged"):
        Alignment(path=str(folder), **CPU)(pictures, prompts)


@pytest.mark.parametrize("shape", [(24,), (1, 24, 2)])
def test_layers_of_another_kind_are_no_predictor(shape):
    with pytest.raises(RewardError, match="not the tensors of an aesthetic predictor"):
        aesthetic_head({"layers.0.weight": torch.ones(shape), "layers.0.bias": torch.ones(1)})
    with pytest.raises(RewardError, match="not the tensors of an aesthetic predictor"):
        aesthetic_head({"layers.0.weight": torch.ones(1, 24), "layers.0.bias": torch.ones(shape)})


def test_the_packaged_model_loads(prompts):
    scores = Alignment(**CPU)(torch.rand(5, 3, 48, 80, generator=torch.Generator().manual_seed(0)), prompts)
    assert scores.shape == (5,)
    assert scores.abs().max() <= 1
