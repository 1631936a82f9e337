r"""A generated micro-video platform: an ordinary dataset whose truth is known.

**Taste.** User :math:`u` has a taste :math:`\pi_u` over K topics (sparse Dirichlet), item :math:`j` a topic
mixture :math:`\theta_j` that is mostly one main topic. Beside topics there are style factors, which only the
clip feature shows, and hidden factors, which no content shows. The log-preference is

.. math:: A_{uj} = \alpha\,\pi_u^\top\theta_j + \beta\,s_u^\top s_j/\sqrt{S} + \delta\,h_u^\top h_j/\sqrt{H}

with standard normal :math:`s` and :math:`h` of dimensions S and H.

**Clicks.** Item :math:`j` has popularity :math:`p_j \propto \mathrm{rank}_j^{-\gamma}`, arrives at
:math:`a_j`, and its appeal fades as :math:`\exp(-(t - a_j)/\lambda)`. The chance that the next click of user
:math:`u` within the log is on item :math:`j` is

.. math::
    P(j \mid u) \propto e_j \Bigl[(1 - \varepsilon)\,
    \frac{p_j \exp A_{uj}}{\sum_i p_i \exp A_{ui}} + \frac{\varepsilon}{N}\Bigr],
    \qquad e_j = \int_{\max(a_j, 0)}^{T} \exp\Bigl(-\frac{t - a_j}{\lambda}\Bigr)\frac{dt}{\lambda}

without repetition, and given the item, the time of the click has the density under the integral. A user
makes ``min_clicks`` plus a geometric number of clicks.

**Content.** The cover shows the main topic as a shape filled with a texture, under random colours, position,
size, rotation and background (:mod:`firstlight.data.simulate.covers`). About half of a title's words belong
to the main topic; the others mislead or say nothing. The clip feature is a random linear map of topic
mixture and style plus noise, and some items have none.

**Parts.** Training, validation and test follow each other in time; the cut before test is
:attr:`SimulationConfig.test_from`. ``role`` is ``cold-test`` for items that arrive after the cut,
``cold-valid`` for those that arrive during validation, else ``warm``. A cold-valid item is still without
training pairs in test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from firstlight.core.errors import InputError
from firstlight.core.files import atomic_path, read_json, write_json
from firstlight.core.seeds import numpy_stream
from firstlight.data.catalogue import Catalogue, FeatureMatrix
from firstlight.data.dataset import Dataset, SplitInfo
from firstlight.data.interactions import Interactions
from firstlight.data.simulate.config import SimulationConfig
from firstlight.data.simulate.covers import draw_cover, encode_jpeg
from firstlight.data.simulate.titles import draw_titles
from firstlight.data.simulate.world import Truth, draw_clicks, draw_counts, draw_times, draw_truth, instant
from firstlight.data.split import hash_parts

__all__ = ["Simulation", "SimulationConfig", "Truth", "read_truth", "simulate", "write_simulation"]


@dataclass(frozen=True, eq=False)
class Simulation:
    """A generated world.

    Attributes:
        config: What it was made from.
        dataset: What a model may see: clicks with times, split, titles, covers, the clip feature.
        truth: What it may not see.
    """

    config: SimulationConfig
    dataset: Dataset
    truth: Truth


def simulate(config: SimulationConfig) -> Simulation:
    """Generate a world; equal settings give equal bytes (on one machine and with one thread count).

    Args:
        config: Sizes, strengths and the seed.

    Returns:
        The dataset and the truth behind it.
    """
    truth = draw_truth(config)
    users, items = draw_clicks(config, truth, draw_counts(config))
    times = draw_times(config, truth, items)
    part = np.searchsorted([instant(config, config.valid_from), truth.cut], times, side="right")
    shape = (config.n_users, config.n_items)
    train, valid, test = (
        Interactions.from_pairs(users[part == code], items[part == code], *shape, times[part == code])
        for code in range(3)
    )
    parts = {"train": train, "valid": valid, "test": test}
    dataset = Dataset(
        name="simulated",
        user_ids=_ids("u", config.n_users),
        item_ids=_ids("v", config.n_items),
        train=train,
        valid=valid if valid.n_pairs else None,
        test=test if test.n_pairs else None,
        catalogue=_catalogue(config, truth),
        source="simulate",
        split=SplitInfo("time", config.seed, hash_parts(parts)),
    )
    return Simulation(config, dataset, truth)


def write_simulation(simulation: Simulation, out: Path) -> None:
    """Write the dataset folder, and the truth beside the data as ``truth.safetensors`` and ``truth.json``.

    Args:
        simulation: What to write.
        out: A folder that does not exist yet, or is empty.

    Raises:
        InputError: ``out`` holds something.
    """
    from safetensors.numpy import save_file

    from firstlight.data.folder import write_dataset

    out = Path(out)
    truth, settings = simulation.truth, simulation.config.model_dump(mode="json")
    write_dataset(simulation.dataset, out, extra={"simulation": settings})
    arrays = {name: value for name, value in vars(truth).items() if isinstance(value, np.ndarray)}
    with atomic_path(out / "truth.safetensors") as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    about = {
        "content_hash": simulation.dataset.content_hash,
        "n_hidden": truth.n_hidden,
        "cut": truth.cut,
        "arrays": {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()},
        "config": settings,
    }
    write_json(out / "truth.json", about)


def read_truth(folder: Path) -> tuple[SimulationConfig, Truth] | None:
    """What a generated world was drawn from, or None for a folder that holds no generated world.

    Raises:
        InputError: The truth is there, but it is torn.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / "truth.json"
    if not path.is_file():
        return None
    try:
        about, arrays = read_json(path), load_file(folder / "truth.safetensors")
        config = SimulationConfig.model_validate(about["config"])
        return config, Truth(**arrays, n_hidden=about["n_hidden"], cut=about["cut"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the truth of this world cannot be read: {error}", path=path) from error


def _ids(letter: str, n: int) -> pl.Series:
    """Raw ids whose order as strings is the order of rows."""
    width = len(str(n - 1))
    return pl.Series([f"{letter}{row:0{width}d}" for row in range(n)], dtype=pl.String)


def _catalogue(config: SimulationConfig, truth: Truth) -> Catalogue:
    """Titles, covers, arrivals and roles, and the clip feature."""
    topics = truth.item_topics.tolist()
    titles = draw_titles(
        topics,
        config.n_topics,
        config.title_words,
        config.title_truth,
        config.generic_share,
        numpy_stream(config.seed, "simulate", "titles"),
    )
    covers = []
    for row, topic in enumerate(topics):
        # One stream per item: covers are drawn in any order, or some of them only, with the same result.
        rng = numpy_stream(config.seed, "simulate", "cover", row)
        covers.append(encode_jpeg(draw_cover(topic, config.cover_size, rng), config.cover_quality))
    cuts = [instant(config, config.valid_from), truth.cut]
    role = np.array(["warm", "cold-valid", "cold-test"])[np.searchsorted(cuts, truth.arrived, side="right")]
    items = pl.DataFrame(
        {
            "title": pl.Series(titles, dtype=pl.String),
            "cover": pl.Series(covers, dtype=pl.Binary),
            "arrived": pl.Series(truth.arrived, dtype=pl.Int64),
            "role": pl.Series(role.tolist(), dtype=pl.String),
        }
    )
    return Catalogue(items, {"clip": _clip_feature(config, truth)})


def _clip_feature(config: SimulationConfig, truth: Truth) -> FeatureMatrix:
    """A random linear map of topic mixture and style, plus noise; hidden factors stay out of it."""
    rng = numpy_stream(config.seed, "simulate", "clip")
    content = truth.item_vectors[:, : config.n_topics + config.n_styles].astype(np.float64)
    signal = content @ rng.standard_normal((content.shape[1], config.clip_dim))
    signal /= max(float(signal.std()), 1e-12)
    values = signal + config.clip_noise * rng.standard_normal(signal.shape)
    present = rng.random(config.n_items) >= config.clip_missing
    values[~present] = 0
    extractor = f"simulated: topics and styles, noise {config.clip_noise}"
    return FeatureMatrix(values.astype(np.float32), present, extractor)
