"""The benchmark's peers, run by `benchmarks.inference` as a process: the same networks.

Uses PyTorch, ONNX Runtime and OpenVINO, from an environment of their own. PyTorch writes the ONNX
file in another process, so that the memory of ONNX Runtime and OpenVINO is theirs alone.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from workers import resident_memory, serve

SIZE = (256, 128)


def make_images(batch):
    """A fixed batch [N, 3, H, W], float32, as if normalised."""
    return np.random.default_rng(0).standard_normal((batch, 3, *SIZE), np.float32)


def make_network(network):
    """The network in PyTorch, from images to features, and the number of its parameters."""
    import torch
    from networks_torch import NETWORKS

    torch.manual_seed(0)
    layers = NETWORKS[network][0]().children()
    model = torch.nn.Sequential(*(k for k in layers if not isinstance(k, torch.nn.Linear))).eval()
    return model, sum(p.numel() for p in model.parameters())


def export(case):
    """Writes the network as the ONNX file that the case names, and prints its parameters."""
    import torch

    model, parameters = make_network(case["network"])
    x = torch.from_numpy(make_images(case["batch"]))
    warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs onnxscript
    torch.onnx.export(model, x, case["export"], dynamo=False, input_names=["x"])
    print(parameters)


def export_apart(case, directory):
    """The path of an ONNX file written by a process of its own, and the number of parameters."""
    path = str(Path(directory) / "network.onnx")
    command = [sys.executable, __file__, json.dumps(case | {"export": path})]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return path, int(printed.split()[-1])


def make_onnxruntime(case):
    """The network in ONNX Runtime: a run, its parameters and the memory before it was made."""
    import onnxruntime

    values, start_memory = make_images(case["batch"]), resident_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case["threads"]
    with tempfile.TemporaryDirectory() as directory:
        path, parameters = export_apart(case, directory)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": values})[0], parameters, start_memory


def make_openvino(case):
    """The same in OpenVINO; one request at a time, so all threads work on it whatever the batch."""
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    values, start_memory = make_images(case["batch"]), resident_memory()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": case["threads"],
    }
    with tempfile.TemporaryDirectory() as directory:
        path, parameters = export_apart(case, directory)
        compiled = core.compile_model(openvino.convert_model(path), "CPU", settings)
    request = compiled.create_infer_request()

    def run():
        return request.infer([values], share_inputs=True, share_outputs=True)[0]

    return run, parameters, start_memory


def make_torch(case):
    """The same in PyTorch, channels last."""
    import torch

    torch.set_num_threads(case["threads"])
    start_memory = resident_memory()
    model, parameters = make_network(case["network"])
    model = model.to(memory_format=torch.channels_last)
    x = torch.from_numpy(make_images(case["batch"])).to(memory_format=torch.channels_last)
    if case["variant"] == "compiled":
        model = torch.compile(model)

    def run():
        with torch.no_grad():
            return model(x).numpy()

    return run, parameters, start_memory


VARIANTS = {
    "onnxruntime": make_onnxruntime,
    "openvino": make_openvino,
    "compiled": make_torch,
    "eager": make_torch,
}


def main():
    """Reads a case, says when it is ready, then runs as many batches as each line asks for."""
    case = json.loads(sys.argv[1])
    if "export" in case:
        export(case)
        return
    run, parameters, start_memory = VARIANTS[case["variant"]](case)
    feature = run()
    ready = {"parameters": parameters, "shape": feature.shape, "mean": float(feature.mean())}
    serve(run, ready | {"start_memory": start_memory})


if __name__ == "__main__":
    main()
