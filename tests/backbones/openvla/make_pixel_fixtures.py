"""Write fixtures/pixels.json: hashes of what TensorFlow makes of the images. Needs tensorflow-cpu; see README.md."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import tensorflow as tf
from synthetic import images

SIZE = 224
FIXTURES = Path(__file__).parent / "fixtures"


def main() -> None:
    inputs = images()
    for path in sorted(FIXTURES.glob("frame_*.png")):
        inputs[path.stem] = tf.io.decode_png(path.read_bytes()).numpy()
    low = (1 - tf.sqrt(0.9)) / 2
    box = tf.stack([low, low, low + tf.sqrt(0.9), low + tf.sqrt(0.9)])[None]
    out = {}
    for name, image in inputs.items():
        jpeg = tf.io.decode_image(tf.image.encode_jpeg(image), expand_animations=False, dtype=tf.uint8)
        resized = tf.image.resize(jpeg, (SIZE, SIZE), method="lanczos3", antialias=True)
        resized = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
        unit = tf.image.convert_image_dtype(resized, tf.float32)[None]
        cropped = tf.image.crop_and_resize(unit, box, tf.range(1), (SIZE, SIZE))[0]
        cropped = tf.image.convert_image_dtype(tf.clip_by_value(cropped, 0, 1), tf.uint8, saturate=True)
        stages = {"jpeg": jpeg, "resized": resized, "cropped": cropped}
        out[name] = {stage: hashlib.sha256(pixels.numpy().tobytes()).hexdigest() for stage, pixels in stages.items()}
    (FIXTURES / "pixels.json").write_text(json.dumps(out, indent=1) + "\n")
    print(f"{len(inputs)} images, TensorFlow {tf.__version__}")


if __name__ == "__main__":
    main()
