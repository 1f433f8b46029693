"""Videos of a dataset: one frame per control tick, many episodes in one file, written and read in order."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np

from aloe_core.errors import AloeError

CODEC = "h264"
ENCODER = "libx264"  # in every PyAV wheel
CRF = 14  # our choice: 38 dB on simulated views of 128 x 128, where colours at half resolution cost more than the codec
KEY_EVERY = 2  # frames; LeRobot's choice: learners read single frames at random
LOOK_BACK_S = 1.0  # [s] a seek goes back so far before the frame that is wanted


class VideoWriter:
    """An H.264 video being written; frame i has the time i / fps.

    Args:
        size: (height, width) [pixel].
        fps: frames per second.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.frames = 0
        self._container = av.open(str(path), "w")
        stream = self._container.add_stream(ENCODER, rate=fps)
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = pixel_format(size)
        self._period = self._stream.time_base = Fraction(1, fps)
        self._stream.options = {"crf": str(CRF), "preset": "veryfast", "g": str(KEY_EVERY), "bf": "0"}
        self._stream.thread_count = 1

    def add(self, image: np.ndarray) -> None:
        """Appends uint8 `[h, w, 3]` RGB."""
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = (
            self.frames,
            self._period,
        )  # the stream has another time base once the file is begun
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self.frames += 1

    def close(self) -> None:
        """Finishes the file."""
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()


def pixel_format(size: tuple[int, int]) -> str:
    """Colours at half resolution, as every player expects, where the size is even; else at full."""
    return "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"


def video_info(size: tuple[int, int], fps: int) -> dict[str, object]:
    """What `info.json` says about a video."""
    return {
        "video.height": size[0],
        "video.width": size[1],
        "video.codec": CODEC,
        "video.pix_fmt": pixel_format(size),
        "video.is_depth_map": False,
        "is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


def read_frames(path: Path, start_s: float, count: int, fps: int) -> Iterator[np.ndarray]:
    """`count` frames uint8 `[h, w, 3]` RGB from time `start_s` [s] on, decoded one by one.

    Raises:
        AloeError: no such file, not a video, or the video ends or skips before the last frame.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            if start_s > LOOK_BACK_S:
                container.seek(round((start_s - LOOK_BACK_S) / float(stream.time_base or 1)), stream=stream)
            done = 0
            for frame in container.decode(stream):
                place = round((frame.time - start_s) * fps)
                if place < done:
                    continue
                if place > done:
                    break
                yield frame.to_ndarray(format="rgb24")
                done += 1
                if done == count:
                    return
    except (FileNotFoundError, IndexError, av.error.FFmpegError) as error:
        raise AloeError(f"{path}: not a readable video: {error}") from None
    raise AloeError(f"{path}: frame {done} of {count} from {start_s:.3f} s on is missing; copy the dataset again")
