"""Networks as files for other programs: StableHLO, ONNX, TensorFlow's SavedModel."""
