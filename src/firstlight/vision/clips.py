"""Clips to a few frames, through PyAV (extra ``video``)."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from firstlight.core.extras import require
from firstlight.vision.decoder import MAX_PIXELS, UnusableImageError
from firstlight.vision.encoder_file import Encoder, Tokens

#: Containers that are opened. Others, playlists above all, may name further files or addresses to be read.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,ogg,gif,asf"


def frames(content: bytes, seconds: float = 1.0, most: int = 32) -> Iterator[Image.Image]:
    """Frames of a clip at equal distances, the first one included.

    Args:
        content: A video file.
        seconds: Distance between frames.
        most: Frames at most; what follows is not decoded.

    Yields:
        RGB pictures, upright, at least one.

    Raises:
        UnusableImageError: It is torn, no video, or too large.
        MissingExtraError: The extra ``video`` is not installed.
    """
    av = require("video")
    given, following = 0, 0.0
    try:
        with av.open(io.BytesIO(content), options={"format_whitelist": FORMATS}) as clip:
            if not clip.streams.video:
                raise UnusableImageError("there is no picture in this clip")
            stream = clip.streams.video[0]
            if stream.codec_context is None:  # there is no decoder for it
                raise UnusableImageError("its codec is not known here")
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise UnusableImageError("its frames have too many pixels")
            stream.codec_context.thread_count = 1  # clips are decoded side by side
            start = None
            for frame in clip.decode(stream):
                time = frame.time or 0.0
                start = time if start is None else start
                if given and time - start < following - 1e-6:
                    continue
                yield _upright(frame.to_image(), getattr(frame, "rotation", 0))
                given += 1
                following = time - start + seconds
                if given == most:
                    return
    except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        if not given:  # of a clip that breaks off, what came before counts
            raise UnusableImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from error
    if not given:
        raise UnusableImageError("there is no frame in this clip")


def _upright(image: Image.Image, degrees: int) -> Image.Image:
    """Turn counter-clockwise by quarters, as telephones note for clips that were taken standing up."""
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(degrees / 90) * 90 % 360)
    return image if turn is None else image.transpose(turn)


def clip_row(
    encoder: Encoder, content: bytes, tokens: Tokens | None = None, *, seconds: float = 1.0, most: int = 32
) -> npt.NDArray[np.float32]:
    """Mean of the features of a clip's frames, ``(dim,)``; frame by frame, so memory stays small.

    Raises:
        UnusableImageError: As :func:`frames`, or the features are not finite.
    """
    device = next(encoder.vit.parameters()).device
    total, count = np.zeros(encoder.dim(tokens)), 0
    for image in frames(content, seconds, most):
        total += encoder.features(encoder.prepare(image)[None].to(device), tokens).reshape(-1).cpu().numpy()
        count += 1
    if not np.isfinite(total).all():
        raise UnusableImageError("the encoder makes numbers of it that are not finite")
    return (total / count).astype(np.float32)
