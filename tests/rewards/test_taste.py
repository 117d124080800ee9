"""The reward that is learnt from votes: its model against closed forms, and what it makes of simulated voters."""

import json
import logging

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rlcm.cli import main
from rlcm.errors import ConfigError, MissingFileError
from rlcm.rewards.build import build_reward
from rlcm.rewards.learned.clip import Network
from rlcm.rewards.learned.hub import Source
from rlcm.rewards.settings import RewardSettings
from rlcm.rewards.taste.features import Encoder
from rlcm.rewards.taste.preference import OUTSIDE, Ballot, Preference
from rlcm.rewards.taste.reward import Taste
from rlcm.rewards.taste.votes import VotesFile


def voters(count, options=3, length=6, noise=0.0, none=0.0, seed=0):
    """Return ballots of voters with known weights, drawn from the model itself, and these weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(length, generator=generator).double() * 3
    found = []
    for _ in range(count):
        features = torch.randn(options, length, generator=generator).double()
        logits = torch.cat([features @ weights, torch.tensor([none], dtype=torch.float64)])
        chosen = int(torch.multinomial(torch.softmax(logits, 0), 1, generator=generator))
        if float(torch.rand((), generator=generator)) < noise:
            chosen = int(torch.randint(options, (), generator=generator))
        found.append(Ballot(features, (chosen,) if chosen < options else ()))
    return found, weights


def log_likelihood(ballots, scores, tau):
    total = torch.zeros((), dtype=torch.float64)
    for ballot in ballots:
        logits = torch.log_softmax(torch.cat([scores(ballot.features), tau[None]]), 0)
        total = total + (logits[list(ballot.chosen)].mean() if ballot.chosen else logits[-1])
    return total


def test_the_weights_are_the_most_probable_and_their_spread_is_the_curvature():
    ballots, _ = voters(40)
    ballots[3] = Ballot(ballots[3].features, (0, 2))
    model = Preference(ballots)

    def loss(weights):
        prior = 0.5 * model.strength * weights[:-1].square().sum() + 0.5 * OUTSIDE * weights[-1] ** 2
        return prior - log_likelihood(ballots, lambda z: model.project(z) @ weights[:-1], weights[-1])

    weights = model.weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(weights), weights)
    assert slope.abs().max() < 0.05
    curvature = torch.autograd.functional.hessian(loss, model.weights)
    assert torch.allclose(torch.linalg.inv(curvature), model.covariance, rtol=1e-6, atol=1e-9)


def test_the_voters_weights_are_found_and_votes_for_none_say_where_nothing_is_better():
    ballots, weights = voters(2000, none=2.0)
    model = Preference(ballots)
    features = torch.randn(500, len(weights), generator=torch.Generator().manual_seed(1)).double()
    truth = features @ weights - 2.0
    found = model.scores(features)
    assert torch.corrcoef(torch.stack([found, truth]))[0, 1] > 0.995
    assert (found - truth).abs().mean() < 0.4


@pytest.mark.parametrize(("noise", "bar"), [(0.0, 0.8), (0.1, 0.75), (0.3, 0.65)])
def test_wrong_votes_do_not_mislead_it_far(noise, bar):
    ballots, weights = voters(200, noise=noise)
    others, _ = voters(200, seed=5)
    model = Preference(ballots)
    right = [
        int(torch.argmax(ballot.features @ weights)) == int(torch.argmax(model.scores(ballot.features))) for ballot in others
    ]
    assert sum(right) / len(right) > bar


def test_guesses_are_probabilities_of_what_can_be_voted():
    ballots, _ = voters(50)
    model = Preference(ballots)
    features = ballots[0].features
    each = [model.guess(Ballot(features, chosen)) for chosen in ((0,), (1,), (2,), ())]
    assert sum(each) == pytest.approx(1)
    assert model.guess(Ballot(features, (0, 2))) == pytest.approx(each[0] + each[2])
    best = max(range(4), key=each.__getitem__)
    assert model.guesses_right(Ballot(features, (best,) if best < 3 else ()))
    assert not model.guesses_right(Ballot(features, ((best + 1) % 3,)))


def test_the_most_telling_question_is_the_one_that_is_least_sure():
    """Of a direction that votes have said much of, and one that they said nothing of, the second is asked for."""
    generator = torch.Generator().manual_seed(0)
    ballots = []
    for _ in range(60):
        features = torch.zeros(2, 2).double()
        features[:, 0] = torch.randn(2, generator=generator)
        ballots.append(Ballot(features, (int(features[:, 0].argmax()),)))
    spread = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).double()
    ballots += [Ballot(spread, (0, 1))]
    model = Preference(ballots)
    known, unknown, same = torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), torch.tensor([[0.0, 3.0], [0.0, -3.0]]), torch.zeros(2, 2)
    told = model.information(torch.stack([known, unknown, same]), generator)
    assert told.argmax() == 1
    assert told[2] < told[1] / 2
    assert (told > -1e-6).all()


def test_a_group_of_few_features_counts_as_much_as_one_of_many():
    generator = torch.Generator().manual_seed(0)
    features = torch.cat(
        [torch.randn(40, 3, 300, generator=generator), 0.01 * torch.randn(40, 3, 2, generator=generator)], dim=2
    )
    model = Preference([Ballot(each, (int(each[:, 300].argmax()),)) for each in features], groups=(300, 2))
    others = 0.01 * torch.randn(200, 2, generator=generator)
    scores = model.scores(torch.cat([torch.zeros(200, 300), others], dim=1))
    assert torch.corrcoef(torch.stack([scores, others[:, 0]]))[0, 1] > 0.8


# The reward


def pictures(count, generator):
    """Return pictures [count, 3, 64, 64]: a disc of any colour on a pale ground."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    inside = ((rows**2 + columns**2) < 0.4).float()
    colours, grounds = (
        torch.rand(count, 3, 1, 1, generator=generator),
        0.7 + 0.3 * torch.rand(count, 3, 1, 1, generator=generator),
    )
    return inside * colours + (1 - inside) * grounds


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Forty votes for the reddest of three."""
    votes = VotesFile(tmp_path_factory.mktemp("taste") / "votes.jsonl")
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        shown = pictures(3, generator)
        votes.add("a disc", shown, [int(redness(shown).argmax())])
    return votes


def redness(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def test_it_learns_a_colour_from_forty_votes(file):
    reward = build_reward(RewardSettings(name="taste", args={"votes": str(file.path)}))
    images = pictures(100, torch.Generator().manual_seed(1)).requires_grad_()
    scores = reward(images, ["a disc"] * 100)
    assert scores.shape == (100,)
    assert torch.corrcoef(torch.stack([scores.detach(), redness(images.detach())]))[0, 1] > 0.8
    (slope,) = torch.autograd.grad(scores.sum(), images)
    assert slope[:, 0].mean() > slope[:, 1].mean()
    assert torch.equal(Taste(votes=str(file.path))(images, [""] * 100), scores), "the same every time"


def test_a_folder_of_pictures_is_scored_from_the_command_line(file, tmp_path):
    for name, colour in (("blue", (60, 60, 220)), ("red", (220, 40, 40))):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    entry = f"{{name: taste, args: {{votes: {json.dumps(str(file.path))}}}}}"
    said = CliRunner().invoke(main, ["rewards", "try", entry, "--images", str(tmp_path)])
    assert said.exit_code == 0, said.output
    rows = {line.split()[0]: line.split()[-1] for line in said.output.splitlines() if ".png" in line}
    assert float(rows["red.png"]) > float(rows["blue.png"])


def test_batches_do_not_matter(file):
    images = pictures(7, torch.Generator().manual_seed(2))
    few, many = (Taste(votes=[str(file.path)], batch_size=size)(images, [""] * 7) for size in (2, 64))
    assert torch.allclose(few, many, atol=1e-4)


def test_too_few_votes_and_pictures_that_are_gone(file, tmp_path, caplog):
    with pytest.raises(MissingFileError, match="is not there"):
        Taste(votes=str(tmp_path / "no.jsonl"))
    lines = file.path.read_text().splitlines()
    moved = tmp_path / "moved.jsonl"  # without its pictures
    moved.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"has 0 votes whose pictures are there; to learn a taste takes 2 or more"):
        Taste(votes=str(moved))
    (file.path.parent / "one.jsonl").write_text(
        lines[0] + "\n" + json.dumps(json.loads(lines[1]) | {"pictures": ["x", "y", "z"]})
    )
    with caplog.at_level(logging.WARNING), pytest.raises(ConfigError, match="has 1 votes"):
        Taste(votes=str(file.path.parent / "one.jsonl"))
    assert "1 of 2 votes are left out: pictures of theirs are not there" in caplog.text


def test_a_picture_that_is_another_than_was_voted_on_does_not_count(tmp_path, caplog):
    votes = VotesFile(tmp_path / "votes.jsonl")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        votes.add("a disc", pictures(2, generator), [0])
    one, other = (votes.votes()[i].pictures[0] for i in (0, 1))
    one.write_bytes(other.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert len(Taste(votes=str(votes.path)).votes) == 2
    assert "1 of 3 votes are left out: pictures of theirs are not there, or are others than were voted on" in caplog.text


def test_what_is_no_vision_transformer_is_refused(file, tmp_path):
    with pytest.raises(MissingFileError, match="holds no model in transformers format"):
        Taste(votes=str(file.path), model=str(tmp_path))(torch.zeros(1, 3, 8, 8), [""])
    with pytest.raises(ValueError, match="must be pinned"):
        Taste(votes=str(file.path), model="openai/clip-vit-base-patch32")


@pytest.mark.parametrize("kind", ["clip", "dinov2", "vit", "siglip"])
def test_vision_transformers_of_several_kinds(tmp_path, kind):
    import transformers

    size = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 8,
    }
    make = {
        "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**size)),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**size)),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**size)),
        "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**size)),
    }
    make[kind]().save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.2] * 3).save_pretrained(tmp_path)
    encoder = Encoder(Source(str(tmp_path)), Network(4, "float32", "cpu"))
    images = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    features = encoder(images)
    assert features.shape == (3, 5 * 16 + 48)
    assert encoder.groups == (80, 48)
    assert torch.allclose(features[:, :80].unflatten(1, (5, 16)).norm(dim=2), torch.ones(3, 5), atol=1e-5)
    mirrored = encoder(images.flip(3))
    assert not torch.allclose(mirrored, features, atol=1e-3), "what is where counts"
