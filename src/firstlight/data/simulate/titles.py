"""Titles: a few words, most of them of the item's topic, some of another one, some of none."""

from __future__ import annotations

import numpy as np

from firstlight.core.seeds import numpy_stream

_GENERIC = (
    "best new my the a for you today video watch this day first time how to with live part clip "
    "amazing funny real little big never again top story moment"
)

_TOPICS = (
    "pasta recipe kitchen chef soup baking dough spicy dinner noodles",
    "football goal striker keeper league penalty coach derby dribble stadium",
    "cat kitten dog puppy paws purring leash fur whiskers fetch",
    "makeup lipstick eyeliner blush skincare serum mascara foundation palette glow",
    "guitar piano chorus drummer melody singer bass ballad chords violin",
    "beach island hotel passport sunset flight backpack temple harbour hike",
    "engine turbo gearbox racing tyres drift motorbike garage exhaust brakes",
    "ranked boss speedrun console quest loot respawn sniper dungeon combo",
    "yoga squats gym deadlift stretching plank cardio abs treadmill protein",
    "algebra physics grammar exam lecture chemistry history homework tutor vocabulary",
    "origami knitting woodwork pottery sewing crochet embroidery glue workshop carving",
    "waltz ballet choreography hiphop salsa tango footwork dancer pirouette rehearsal",
)

_ONSETS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def vocabulary(topic: int) -> list[str]:
    """The ten words of a topic; topics beyond the written list have invented words."""
    if topic < len(_TOPICS):
        return _TOPICS[topic].split()
    rng = numpy_stream(topic, "simulate", "vocabulary")
    syllables = rng.integers(0, [len(_ONSETS), len(_VOWELS)], (10, 3, 2))
    return ["".join(_ONSETS[onset] + _VOWELS[vowel] for onset, vowel in word) for word in syllables]


def draw_titles(
    topics: list[int],
    n_topics: int,
    n_words: tuple[int, int],
    truth: float,
    generic: float,
    rng: np.random.Generator,
) -> list[str]:
    """One title per item.

    Args:
        topics: Main topic of each item.
        n_topics: Number of topics, at least 2.
        n_words: Fewest and most words.
        truth: Probability that a topical word is of the item's own topic.
        generic: Probability that a word is of no topic.
        rng: Random stream.

    Returns:
        Titles, words in drawn order, the first one capitalised.
    """
    generic_words = _GENERIC.split()
    words = [vocabulary(topic) for topic in range(n_topics)]
    titles = []
    for topic in topics:
        title = []
        for _ in range(rng.integers(n_words[0], n_words[1] + 1)):
            if rng.random() < generic:
                source = generic_words
            elif rng.random() < truth:
                source = words[topic]
            else:
                source = words[(topic + rng.integers(1, n_topics)) % n_topics]
            title.append(source[rng.integers(len(source))])
        titles.append(" ".join(title).capitalize())
    return titles
