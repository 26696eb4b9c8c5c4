"""TensorFlow as it is used here: it reads and feeds data, on the processor alone."""

import functools
import os


@functools.cache
def tensorflow():
    """TensorFlow, slow to import, told to be quiet and to take no accelerator from JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf
