// Where points of the map stand on the screen, and which of them is near. Knows nothing of drawing.

/** Points as `{x, y}` in [0, 1], the middle of their box in the middle, whatever units they came in. */
export function normalise(points) {
  const range = (values) => {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
    return [low, high];
  };
  const [left, right] = range(points.map((point) => point.x));
  const [bottom, top] = range(points.map((point) => point.y));
  const size = Math.max(right - left, top - bottom) || 1;
  return points.map((point) => ({
    ...point,
    x: 0.5 + (point.x - (left + right) / 2) / size,
    y: 0.5 - (point.y - (bottom + top) / 2) / size, // The screen counts downwards.
  }));
}

export class Viewport {
  constructor() {
    Object.assign(this, { width: 1, height: 1, zoom: 1, x: 0.5, y: 0.5 });
  }

  /** Pixels per unit. */
  get scale() {
    return this.zoom * 0.9 * Math.min(this.width, this.height);
  }

  reset() {
    Object.assign(this, { zoom: 1, x: 0.5, y: 0.5 });
  }

  toScreen(point) {
    return [(point.x - this.x) * this.scale + this.width / 2, (point.y - this.y) * this.scale + this.height / 2];
  }

  pan(dx, dy) {
    this.x = Math.min(1.1, Math.max(-0.1, this.x - dx / this.scale));
    this.y = Math.min(1.1, Math.max(-0.1, this.y - dy / this.scale));
  }

  /** Zoom by a factor; what is under `(px, py)` stays there. */
  zoomAt(factor, px = this.width / 2, py = this.height / 2) {
    const before = this.scale;
    this.zoom = Math.min(60, Math.max(0.8, this.zoom * factor));
    this.x += (px - this.width / 2) * (1 / before - 1 / this.scale);
    this.y += (py - this.height / 2) * (1 / before - 1 / this.scale);
  }

  /** Bring a point in, at a zoom at which its neighbours can be told apart. */
  centre(point, zoom = Math.max(this.zoom, 4)) {
    Object.assign(this, { x: point.x, y: point.y, zoom });
  }

  /** Whether a point is on the screen, with a margin in pixels (negative: beyond the edge). */
  sees(point, margin = 0) {
    const [x, y] = this.toScreen(point);
    return x >= margin && y >= margin && x <= this.width - margin && y <= this.height - margin;
  }

  /** The nearest of the points to a place on the screen, at most `reach` pixels away, or null. */
  nearest(points, px, py, reach) {
    let [best, least] = [null, reach * reach];
    for (const point of points) {
      const [x, y] = this.toScreen(point);
      const distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance <= least) [best, least] = [point, distance];
    }
    return best;
  }
}

/** The point that one reaches from `from` by going in a direction: near, and not far off to the side. */
export function towards(points, from, dx, dy) {
  let [best, least] = [null, Infinity];
  for (const point of points) {
    const [x, y] = [point.x - from.x, point.y - from.y];
    const along = x * dx + y * dy;
    const aside = Math.abs(x * dy - y * dx);
    if (point === from || along <= 0 || aside > 2 * along) continue;
    const cost = along + 2 * aside;
    if (cost < least) [best, least] = [point, cost];
  }
  return best;
}
