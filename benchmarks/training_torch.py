"""The benchmark's PyTorch side: the same networks, run by `benchmarks.training` as a process.

Uses PyTorch alone, from an environment of its own.
"""

import json
import sys
import time

import torch
from networks_torch import IDENTITIES, NETWORKS
from workers import resident_memory, serve


def make_step(network, dtype, variant, shape):
    """Returns a function that trains one step on a fixed batch and returns the loss."""
    make, loss_function = NETWORKS[network]
    n, h, w, _ = shape
    model = make().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.rand(n, 3, h, w).to(memory_format=torch.channels_last)
    labels = torch.randint(0, IDENTITIES, (n,))

    def forward(x, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            outputs = model(x)
        return loss_function(outputs, x, labels)

    if variant == "compiled":
        forward = torch.compile(forward)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = forward(x, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    step.parameters = sum(p.numel() for p in model.parameters())
    return step


def matrix_product(dtype, size=2048, repeats=3):
    """FLOP/s of a square matrix product, the best of several."""
    a = torch.rand(size, size).to(getattr(torch, dtype))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def main():
    """Reads a case, says when it is ready, then runs as many steps as each line asks for."""
    case = json.loads(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(case["threads"])
    start_memory = resident_memory()
    step = make_step(case["network"], case["dtype"], case["variant"], case["shape"])
    ready = {"loss": step(), "parameters": step.parameters, "start_memory": start_memory}
    serve(step, ready, lambda: {"peak": matrix_product(case["dtype"])})


if __name__ == "__main__":
    main()
