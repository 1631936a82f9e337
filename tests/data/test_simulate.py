"""The generated world: repeatable, sound as a dataset, and as hard and as easy as it claims."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from firstlight.core.errors import InputError
from firstlight.core.hashing import hash_arrays
from firstlight.core.seeds import numpy_stream
from firstlight.data.simulate import Simulation, SimulationConfig, simulate, write_simulation
from firstlight.data.simulate import world as worlds
from firstlight.data.simulate.covers import MOST_TOPICS, appearance, draw_cover, encode_jpeg
from firstlight.data.simulate.titles import vocabulary
from firstlight.data.simulate.world import draw_clicks, draw_counts, draw_times, draw_truth, exposure, instant
from firstlight.data.split import hash_parts


@pytest.fixture(scope="module")
def world() -> Simulation:
    return simulate(SimulationConfig())


def fingerprint(simulation: Simulation) -> list[str]:
    truth, catalogue = simulation.truth, simulation.dataset.catalogue
    arrays = [value for value in vars(truth).values() if isinstance(value, np.ndarray)]
    clip = catalogue.features["clip"]
    return [
        simulation.dataset.content_hash,
        hash_arrays([*arrays, clip.values, clip.present]),
        *(repr(catalogue.items[column].to_list()) for column in catalogue.items.columns),
    ]


def test_the_same_settings_give_the_same_bytes() -> None:
    config = SimulationConfig(n_users=60, n_items=80, seed=3)
    assert fingerprint(simulate(config)) == fingerprint(simulate(config))


def test_another_seed_gives_another_world() -> None:
    one, other = (
        fingerprint(simulate(SimulationConfig(n_users=60, n_items=80, seed=seed))) for seed in (3, 4)
    )
    assert all(left != right for left, right in zip(one, other, strict=True))


@settings(max_examples=15, deadline=None)
@given(
    n_users=st.integers(1, 30),
    n_items=st.integers(10, 40),
    n_topics=st.integers(2, MOST_TOPICS),
    factors=st.sampled_from([(0, 0), (1, 3)]),
    noise=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_size_is_a_sound_dataset(
    n_users: int, n_items: int, n_topics: int, factors: tuple[int, int], noise: float, seed: int
) -> None:
    config = SimulationConfig(
        n_users=n_users,
        n_items=n_items,
        n_topics=n_topics,
        n_styles=factors[0],
        n_hidden=factors[1],
        noise_share=noise,
        cover_size=16,
        seed=seed,
    )
    simulation = simulate(config)
    dataset, truth = simulation.dataset, simulation.truth
    cells: Counter[tuple[int, int]] = Counter()
    for part in dataset.parts.values():
        assert (part.n_users, part.n_items) == (n_users, n_items)
        cells.update(zip(part.users.tolist(), part.items.tolist(), strict=True))
        assert part.times is not None
        assert np.all(part.times >= np.maximum(truth.arrived[part.items], config.start))
        assert np.all(part.times < instant(config, 1.0))
    assert max(cells.values()) == 1
    assert len(cells) == draw_counts(config).sum()
    assert dataset.catalogue.items.height == n_items
    assert len(dataset.user_ids) == n_users
    assert sorted(dataset.item_ids.to_list()) == dataset.item_ids.to_list()
    assert np.allclose(truth.user_tastes.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(truth.item_mixtures.sum(axis=1), 1, atol=1e-5)
    assert truth.item_topics.tolist() == truth.item_mixtures.argmax(axis=1).tolist()


def test_parts_follow_the_cuts_and_roles_follow_arrival(world: Simulation) -> None:
    dataset, truth, config = world.dataset, world.truth, world.config
    begin = instant(config, config.valid_from)
    train, valid, test = dataset.train.times, dataset.valid.times, dataset.test.times  # type: ignore[union-attr]
    assert train.max() < begin <= valid.min()  # type: ignore[union-attr]
    assert valid.max() < truth.cut <= test.min()  # type: ignore[union-attr]
    role = dataset.catalogue.items["role"].to_numpy()
    assert np.sum(role == "cold-test") == round(config.arriving_share * config.n_items)
    assert np.array_equal(role == "cold-test", truth.arrived >= truth.cut)
    assert np.array_equal(role == "cold-valid", (truth.arrived >= begin) & (truth.arrived < truth.cut))
    assert np.array_equal(dataset.catalogue.items["arrived"].to_numpy(), truth.arrived)
    assert dataset.train.item_degrees[role != "warm"].sum() == 0
    assert dataset.valid is not None
    assert dataset.test is not None
    assert dataset.valid.item_degrees[role == "cold-test"].sum() == 0
    for name in ("warm", "cold-test"):
        assert dataset.test.item_degrees[role == name].sum() > 1000
    assert dataset.split is not None
    assert (dataset.split.name, dataset.split.seed) == ("time", config.seed)
    assert dataset.split.hash == hash_parts(dataset.parts)


def recall_at_20(world: Simulation, scores: npt.NDArray[np.floating]) -> float:
    """Mean Recall@20 on test over users with test pairs; pairs of train and valid are not offered."""
    dataset, recalls = world.dataset, []
    assert dataset.valid is not None
    assert dataset.test is not None
    for user in np.flatnonzero(dataset.test.user_degrees):
        row = scores[user].astype(np.float64)
        row[dataset.train.row(user)] = row[dataset.valid.row(user)] = -np.inf
        targets = dataset.test.row(user)
        recalls.append(np.isin(targets, np.argsort(-row, kind="stable")[:20]).mean())
    return float(np.mean(recalls))


def test_knowing_the_truth_beats_content_beats_popularity_beats_chance(world: Simulation) -> None:
    users = np.arange(world.config.n_users)
    appeal = np.log(world.truth.popularity)
    truth = recall_at_20(world, world.truth.affinity(users) + appeal)
    content = recall_at_20(world, world.truth.affinity(users, hidden=False) + appeal)
    shape = (len(users), world.config.n_items)
    popularity = recall_at_20(world, np.broadcast_to(world.dataset.train.item_degrees, shape))
    chance = recall_at_20(world, np.random.default_rng(0).random(shape))
    assert truth > 1.1 * content
    assert content > 2.5 * popularity
    assert popularity > 3 * chance


def test_popularity_is_a_power_law_and_clicks_follow_it(world: Simulation) -> None:
    weights = np.sort(world.truth.popularity)[::-1]
    assert weights.sum() == pytest.approx(1)
    assert np.log(weights[0] / weights[99]) / np.log(100) == pytest.approx(world.config.popularity_exponent)
    old = world.truth.arrived < world.config.start
    clicks = sum(part.item_degrees for part in world.dataset.parts.values())
    order = np.argsort(-world.truth.popularity[old])
    share = clicks[old][order][: old.sum() // 10].sum() / clicks[old].sum()
    assert share > 0.25


def test_click_frequencies_match_the_stated_probability() -> None:
    # One click a user and one taste for all: frequencies are the probabilities of the module's equation.
    config = SimulationConfig(
        n_users=40_000,
        n_items=10,
        n_topics=2,
        mean_clicks=1,
        min_clicks=1,
        hidden_strength=0,
        style_strength=0,
        topic_strength=2.0,
        noise_share=0.3,
    )
    truth = draw_truth(config)
    truth.user_vectors[:] = truth.user_vectors[0]
    _, items = draw_clicks(config, truth, np.ones(config.n_users, np.int64))
    preference = truth.popularity * np.exp(truth.affinity(np.array([0]))[0])
    expected = (0.7 * preference / preference.sum() + 0.3 / 10) * exposure(config, truth)
    expected /= expected.sum()
    seen = np.bincount(items, minlength=10) / config.n_users
    assert np.all(np.abs(seen - expected) < 5 * np.sqrt(expected / config.n_users))


def test_clicks_do_not_depend_on_how_many_users_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimulationConfig(n_users=50, n_items=40)
    truth, counts = draw_truth(config), draw_counts(config)
    whole = draw_clicks(config, truth, counts)
    monkeypatch.setattr(worlds, "_CELLS", 7 * config.n_items)
    blocked = draw_clicks(config, truth, counts)
    assert np.array_equal(whole[0], blocked[0])
    # Products of differently shaped blocks may differ in the last bit, and so a close race in its winner.
    assert np.mean(whole[1] != blocked[1]) < 0.01


def test_click_times_fade_with_the_age_of_an_item() -> None:
    config = SimulationConfig(lifetime_days=6)
    truth = draw_truth(config)
    early = int(np.flatnonzero((truth.arrived > config.start) & (truth.arrived < instant(config, 0.1)))[0])
    age = (draw_times(config, truth, np.full(50_000, early)) - truth.arrived[early]) / worlds.DAY
    # At least nine lifetimes lie ahead, so truncation moves mean and median by less than the tolerance.
    assert age.mean() == pytest.approx(6, rel=0.03)
    assert np.median(age) == pytest.approx(6 * np.log(2), rel=0.03)


def test_activity_has_the_stated_mean_and_floor() -> None:
    config = SimulationConfig(n_users=20_000, mean_clicks=20, min_clicks=5)
    counts = draw_counts(config)
    assert counts.min() == 5
    assert counts.mean() == pytest.approx(20, rel=0.03)


def test_titles_tell_and_mislead_as_often_as_stated() -> None:
    config = SimulationConfig(n_users=5, n_items=3000, cover_size=16)
    simulation = simulate(config)
    own = other = none = 0
    words = [set(vocabulary(topic)) for topic in range(config.n_topics)]
    titles = simulation.dataset.catalogue.items["title"].to_list()
    for title, topic in zip(titles, simulation.truth.item_topics.tolist(), strict=True):
        assert config.title_words[0] <= len(title.split()) <= config.title_words[1]
        for word in title.lower().split():
            own += word in words[topic]
            other += word not in words[topic] and any(word in bag for bag in words)
            none += not any(word in bag for bag in words)
    assert own / (own + other) == pytest.approx(config.title_truth, abs=0.02)
    assert none / (own + other + none) == pytest.approx(config.generic_share, abs=0.02)


def test_vocabularies_are_apart() -> None:
    words = [word for topic in range(MOST_TOPICS) for word in vocabulary(topic)]
    assert len(words) == 10 * MOST_TOPICS
    assert len(set(words)) == len(words)


def test_clip_shows_topics_and_styles_but_not_hidden_factors(world: Simulation) -> None:
    clip = world.dataset.catalogue.features["clip"]
    assert clip.values.shape == (world.config.n_items, world.config.clip_dim)
    assert np.all(clip.values[~clip.present] == 0)
    assert np.mean(~clip.present) == pytest.approx(world.config.clip_missing, abs=0.03)
    x = clip.values[clip.present]
    half = len(x) // 2
    topics = world.truth.item_topics[clip.present]
    assert RidgeClassifier().fit(x[:half], topics[:half]).score(x[half:], topics[half:]) > 0.9

    def explained(columns: slice) -> float:
        y = world.truth.item_vectors[clip.present, columns]
        weights, *_ = np.linalg.lstsq(x[:half], y[:half], rcond=None)
        return float(1 - np.mean((y[half:] - x[half:] @ weights) ** 2) / np.var(y[half:]))

    k, s = world.config.n_topics, world.config.n_styles
    assert explained(slice(k, k + s)) > 0.8
    assert explained(slice(k + s, None)) < 0.05


# ------------------------------------------------------------------------------------------------ covers


def pixels(covers: list[bytes]) -> npt.NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(io.BytesIO(cover))) for cover in covers])


def colour_statistics(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Mean, standard deviation and a 16-bin histogram of each channel."""
    flat = images.reshape(len(images), -1, 3)
    histograms = [
        [np.bincount(image[:, c] // 16, minlength=16) / len(image) for c in range(3)] for image in flat
    ]
    return np.concatenate([flat.mean(1), flat.std(1), np.reshape(histograms, (len(flat), -1))], axis=1)


def test_covers_are_jpegs_of_the_asked_size(world: Simulation) -> None:
    cover = Image.open(io.BytesIO(world.dataset.catalogue.items["cover"][0]))
    assert (cover.format, cover.mode, cover.size) == ("JPEG", "RGB", (64, 64))


def test_each_topic_has_its_own_look() -> None:
    looks = [appearance(topic) for topic in range(MOST_TOPICS)]
    assert len(set(looks)) == MOST_TOPICS
    # With twelve topics, neither the shape nor the texture alone tells the topic.
    assert set(Counter(shape for shape, _ in looks[:12]).values()) == {2}
    assert set(Counter(texture for _, texture in looks[:12]).values()) == {2}


def test_colour_statistics_do_not_tell_the_topic(world: Simulation) -> None:
    features = colour_statistics(pixels(world.dataset.catalogue.items["cover"].to_list()))
    topics, half = world.truth.item_topics, len(features) // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    assert model.fit(features[:half], topics[:half]).score(features[half:], topics[half:]) <= 0.5


@pytest.mark.slow
def test_a_trained_classifier_tells_the_topic() -> None:
    """A small convolutional network, trained on two thousand covers, gets 95 of 100 right."""
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    n, n_train = 2800, 2048
    topics = np.arange(n) % 12
    covers = [
        encode_jpeg(draw_cover(int(topic), 64, numpy_stream(0, row)), 90) for row, topic in enumerate(topics)
    ]
    x = torch.from_numpy(pixels(covers)).permute(0, 3, 1, 2).float()
    x = x - x.mean((2, 3), keepdim=True)
    x = (x / x.std((1, 2, 3), keepdim=True)).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(topics)

    def block(ins: int, outs: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU())

    widths = [(3, 24, 2), (24, 48, 2), (48, 64, 1), (64, 96, 2), (96, 96, 1)]
    network = nn.Sequential(
        *(block(ins, outs, stride) for ins, outs, stride in widths),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1][1], 12),
    ).to(memory_format=torch.channels_last)
    epochs, batch = 12, 32
    optimiser = torch.optim.AdamW(network.parameters(), lr=6e-3, weight_decay=0.05)
    steps = epochs * (n_train // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(n_train)[: n_train // batch * batch].view(-1, batch):
            # A topic survives quarter turns, mirrors and any change of colours.
            images = torch.rot90(x[rows], int(torch.randint(4, ())), (2, 3))[:, torch.randperm(3)]
            images = images.flip(3) if torch.rand(()) < 0.5 else images
            loss = functional.cross_entropy(network(images * (torch.randint(2, ()) * 2 - 1)), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        right = (network(x[n_train:]).argmax(1) == y[n_train:]).float().mean().item()
    assert right >= 0.95


# ------------------------------------------------------------------------------------------------- files


def test_writing_keeps_the_dataset_and_puts_the_truth_beside_it(tmp_path: Path) -> None:
    from firstlight.data.folder import read_dataset_folder

    simulation = simulate(SimulationConfig(n_users=40, n_items=50, cover_size=16))
    out = tmp_path / "world"
    write_simulation(simulation, out)
    back = read_dataset_folder(out)
    assert back.content_hash == simulation.dataset.content_hash
    assert back.catalogue.items.equals(simulation.dataset.catalogue.items)
    assert "topic" not in "".join(back.catalogue.items.columns)
    truth = load_file(out / "truth.safetensors")
    assert np.array_equal(truth["item_topics"], simulation.truth.item_topics)
    assert np.array_equal(truth["user_vectors"], simulation.truth.user_vectors)
    about = json.loads((out / "truth.json").read_text())
    assert about["content_hash"] == back.content_hash
    assert SimulationConfig.model_validate(about["config"]) == simulation.config


def test_writing_over_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("here")
    with pytest.raises(InputError, match="not empty"):
        write_simulation(simulate(SimulationConfig(n_users=5, n_items=10, cover_size=16)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"valid_from": 0.9},
        {"title_words": (0, 3)},
        {"title_words": (5, 3)},
        {"mean_clicks": 3},
        {"n_items": 10, "min_clicks": 6},
        {"n_topics": MOST_TOPICS + 1},
        {"n_user": 10},
    ],
)
def test_settings_that_make_no_world_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SimulationConfig.model_validate(wrong)


def test_every_setting_is_documented() -> None:
    for name, about in SimulationConfig.model_fields.items():
        assert about.description, name
