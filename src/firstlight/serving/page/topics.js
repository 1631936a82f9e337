// Topics of the map come as numbers: words that are typical of their titles name them, colours tell them apart.

/** Middle tones, legible on light and on dark ground. */
const COLOURS = [
  "#4e86c4", "#e8862e", "#3f9d5b", "#d6545c", "#8a6fd1", "#b58a1f",
  "#2fa3a3", "#d470a8", "#7f8f3a", "#a0684c", "#5e6fb0", "#7d8a97",
];

export const colourOf = (topic) => COLOURS[((topic % COLOURS.length) + COLOURS.length) % COLOURS.length];

/**
 * Topics, the largest first.
 * @param {Array} points `{topic, title, new}`
 * @returns {Array} `{topic, colour, label, size}`
 */
export function topicsOf(points) {
  const groups = new Map();
  const everywhere = new Map();
  for (const { topic, title } of points) {
    const group = groups.get(topic) ?? { size: 0, words: new Map() };
    groups.set(topic, group);
    group.size += 1;
    for (const word of new Set((title ?? "").toLowerCase().match(/\p{L}{3,}/gu) ?? [])) {
      group.words.set(word, (group.words.get(word) ?? 0) + 1);
      everywhere.set(word, (everywhere.get(word) ?? 0) + 1);
    }
  }
  const label = ({ size, words }, topic) => {
    // Often here, seldom elsewhere; a word of one title is no word of a topic.
    const score = (n, word) => n * Math.log((n / size) / (everywhere.get(word) / points.length));
    const typical = [...words]
      .filter(([, n]) => n > 1)
      .map(([word, n]) => [word, score(n, word)])
      .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
    return typical.slice(0, 3).map(([word]) => word).join(", ") || `Topic ${topic + 1}`;
  };
  return [...groups]
    .map(([topic, group]) => ({ topic, colour: colourOf(topic), size: group.size, label: label(group, topic) }))
    .sort((a, b) => b.size - a.size || a.topic - b.topic);
}
