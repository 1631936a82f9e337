// Drawing of the map on its canvas.
import { colourOf } from "./topics.js";

const pictures = new Map();

/** The picture of a point, or null while it loads or if there is none. */
function picture(point, ready) {
  let image = pictures.get(point.id);
  if (!image) {
    image = new Image();
    image.addEventListener("load", ready);
    image.src = point.cover;
    pictures.set(point.id, image);
    if (pictures.size > 600) pictures.delete(pictures.keys().next().value);
  }
  return image.complete && image.naturalWidth ? image : null;
}

/** A new item is a diamond in a ring: it is told by its form, not by its colour alone. */
function outline(pen, x, y, radius, isNew) {
  pen.beginPath();
  if (isNew) {
    const far = radius * 1.45;
    pen.moveTo(x, y - far);
    for (const [dx, dy] of [[far, 0], [0, far], [-far, 0]]) pen.lineTo(x + dx, y + dy);
    pen.closePath();
  } else pen.arc(x, y, radius, 0, 2 * Math.PI);
}

function drawPicture(pen, image, x, y, half, point, accent) {
  const side = Math.min(image.naturalWidth, image.naturalHeight);
  const [left, top] = [(image.naturalWidth - side) / 2, (image.naturalHeight - side) / 2];
  pen.save();
  pen.beginPath();
  pen.roundRect(x - half, y - half, 2 * half, 2 * half, 7);
  pen.clip();
  pen.drawImage(image, left, top, side, side, x - half, y - half, 2 * half, 2 * half);
  pen.restore();
  pen.beginPath();
  pen.roundRect(x - half, y - half, 2 * half, 2 * half, 7);
  pen.lineWidth = point.new ? 4 : 2.5;
  pen.strokeStyle = point.new ? accent : colourOf(point.topic);
  pen.stroke();
}

/**
 * Draw everything.
 * @param {HTMLCanvasElement} canvas
 * @param {Object} state `{points, view, cursor}`
 * @param {Set} bright The points that count; the others are faint.
 * @param {Function} ready Called when a picture has arrived and a redraw would show it.
 */
export function drawMap(canvas, { points, view, cursor }, bright, ready) {
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const [accent, ink, ground] = [style.color, style.borderTopColor, style.backgroundColor];
  pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  pen.clearRect(0, 0, view.width, view.height);
  const near = points.filter((point) => view.sees(point, -40));
  const half = Math.min(34, 16 + 3 * Math.sqrt(view.zoom));
  // Where there is room, covers take the place of points.
  const close = near.length * (4 * half) ** 2 < view.width * view.height;
  const radius = Math.min(9, Math.max(2.6, 60 / Math.sqrt(points.length)) * Math.sqrt(Math.sqrt(view.zoom)) * 1.4);
  // Faint ones first, new ones last: what counts lies on top.
  const rank = (point) => (bright.has(point) ? 1 : 0) + (point.new ? 2 : 0) + (point === cursor ? 8 : 0);
  for (const point of near.sort((a, b) => rank(a) - rank(b))) {
    const [x, y] = view.toScreen(point);
    pen.globalAlpha = bright.has(point) ? 1 : 0.13;
    const image = close && bright.has(point) ? picture(point, ready) : null;
    if (image) drawPicture(pen, image, x, y, half, point, accent);
    else {
      outline(pen, x, y, radius, point.new);
      pen.fillStyle = colourOf(point.topic);
      pen.fill();
      pen.lineWidth = point.new ? 2 : 1;
      pen.strokeStyle = point.new ? ink : ground;
      pen.stroke();
    }
    if (point === cursor) {
      pen.globalAlpha = 1;
      pen.beginPath();
      if (image) pen.roundRect(x - half - 5, y - half - 5, 2 * half + 10, 2 * half + 10, 11);
      else pen.arc(x, y, radius * 1.5 + 5, 0, 2 * Math.PI);
      pen.lineWidth = 2.5;
      pen.strokeStyle = ink;
      pen.stroke();
    }
  }
  pen.globalAlpha = 1;
}
