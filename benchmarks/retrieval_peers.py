"""The retrieval benchmarks' peers, run by `benchmarks.retrieval` as a process in their own Python.

python -m venv peers && peers/bin/pip install torch numpy scikit-learn faiss-cpu fastcluster cython
    setuptools
peers/bin/pip install open-metric-learning omegaconf
peers/bin/pip install --no-deps torchreid==0.2.5 fastreid==1.4.0
(cd peers/lib/python3.11/site-packages/fastreid/evaluation/rank_cylib &&
    ../../../../../../bin/python setup.py build_ext --inplace)

torchreid's evaluator in Cython is in fast-reid's wheel (and not in torchreid's own). Both packages
are loaded a file at a time: they import much that they do not need here.
"""

import contextlib
import functools
import importlib.util
import json
import resource
import sys
import sysconfig
import time
import types
from pathlib import Path

import numpy as np

K = 50
PACKAGES = Path(sysconfig.get_paths()["purelib"])


def load(path):
    """A module of a package by its file, without the package."""
    sys.modules.setdefault(path.split("/")[0], None)  # importing it fails as if it were absent
    file = next(PACKAGES.glob(path))
    spec = importlib.util.spec_from_file_location(file.name.split(".")[0], file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normalize(x):
    """Rows of length one."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cosine(query, gallery):
    """All cosine distances."""
    return 1 - normalize(query) @ normalize(gallery).T


def sides(labels):
    """In torchreid's order."""
    return [labels[k] for k in ("query_pids", "gallery_pids", "query_camids", "gallery_camids")]


def rank_by(evaluate):
    """Torchreid's and fast-reid's evaluators, distances included."""

    def run(query, gallery, labels):
        found = evaluate(cosine(query, gallery), *sides(labels), 50)
        if len(found) == 2:  # torchreid: (cmc, mAP)
            return lambda: {"mAP": float(found[1]), "rank1": float(found[0][0])}
        return lambda: {"mAP": float(np.mean(found[1])), "rank1": float(found[0][0])}

    return run


def fastreid_compiled(query, gallery, labels):
    """The evaluator in Cython that torchreid and fast-reid share."""
    evaluate = load("fastreid/evaluation/rank_cylib/rank_cy*.so").evaluate_cy
    return rank_by(evaluate)(query, gallery, labels)


def torchreid_python(query, gallery, labels):
    """What torchreid falls back to where nothing is compiled."""
    evaluate = load("torchreid/reid/metrics/rank.py").eval_market1501
    return rank_by(evaluate)(query, gallery, labels)


def scikit_learn(query, gallery, labels):
    """Its average precision for each query, after leaving the own camera out."""
    from sklearn.metrics import average_precision_score

    far = cosine(query, gallery)
    q, g, qc, gc = sides(labels)
    precision, first = [], []
    for row, pid, camid in zip(far, q, qc, strict=True):
        kept = (g != pid) | (gc != camid)
        right = g[kept] == pid
        if right.any():
            precision.append(average_precision_score(right, -row[kept]))
            first.append(right[np.argmin(row[kept])])
    return lambda: {"mAP": float(np.mean(precision)), "rank1": float(np.mean(first))}


def open_metric_learning(query, gallery, labels):
    """Its retrieval metrics from full lists."""
    import torch
    from oml.functional.metrics import calc_retrieval_metrics

    far = torch.from_numpy(cosine(query, gallery))
    q, g, qc, gc = (torch.from_numpy(np.asarray(a)) for a in sides(labels))
    retrieved, truth = [], []
    for row, pid, camid in zip(far, q, qc, strict=True):
        order = torch.argsort(row, stable=True)
        same = g == pid
        left_out = same & (gc == camid)
        retrieved.append(order[~left_out[order]])
        truth.append(torch.nonzero(same & ~left_out)[:, 0])
    kept = [i for i, t in enumerate(truth) if len(t)]
    retrieved, truth = ([side[i] for i in kept] for side in (retrieved, truth))
    found = calc_retrieval_metrics(
        retrieved,
        truth,
        cmc_top_k=(1,),
        precision_top_k=(),
        map_top_k=(len(gallery),),
        verbose=False,
    )
    return lambda: {"mAP": float(found["map"][len(gallery)]), "rank1": float(found["cmc"][1])}


def torchreid_reranking(query, gallery, labels):
    """Zhong's code as torchreid has it, squaring included."""
    rerank = load("torchreid/reid/utils/rerank.py").re_ranking
    far = rerank(cosine(query, gallery), cosine(query, query), cosine(gallery, gallery))

    def judge():
        found = load("fastreid/evaluation/rank_cylib/rank_cy*.so").evaluate_cy(
            far, *sides(labels), 50
        )
        return {"mAP": float(np.mean(found[1])), "rank1": float(found[0][0])}

    return judge


def fastreid_jaccard(query, gallery, labels):
    """OpenUnReID's code as fast-reid has it, on the CPU; it prints."""
    import torch

    for name in ("fastreid", "fastreid.utils"):  # importing them would fail
        package = types.ModuleType(name)
        package.__path__ = [str(PACKAGES / name.replace(".", "/"))]
        sys.modules[name] = package
    compute = importlib.import_module("fastreid.utils.compute_dist").compute_jaccard_distance
    with contextlib.redirect_stdout(sys.stderr):
        features = torch.from_numpy(normalize(gallery))
        far = compute(features, k1=30, k2=6, search_option=3)
    near = far[far < 0.6]
    return lambda: {"pairs": near.size / len(gallery), "distance": float(near.mean())}


def faiss_flat(query, gallery, labels):
    """Exact search."""
    import faiss

    index = faiss.IndexFlatIP(query.shape[1])
    index.add(normalize(gallery))
    near, _ = index.search(normalize(query), K)
    return lambda: {"distance": float(1 - near.mean()), "recall": 1.0}


def numpy_partition(query, gallery, labels):
    """All distances, partitioned and sorted."""
    far = cosine(query, gallery)
    at = np.argpartition(far, K, axis=1)[:, :K]
    near = np.sort(np.take_along_axis(far, at, axis=1), axis=1)
    return lambda: {"distance": float(near.mean()), "recall": 1.0}


def by_tree(make):
    """A linkage's tree of the gallery, in SciPy's form."""

    def run(query, gallery, labels, *, method):
        tree = make(np.asarray(gallery, np.float64), method)
        return lambda: {"height": float(tree[:, 2].mean())}

    return run


def scipy_linkage(gallery, method):
    """Distances and linkage."""
    from scipy.cluster.hierarchy import linkage

    return linkage(gallery, method)


def fastcluster_linkage(gallery, method):
    """Distances by SciPy, linkage by fastcluster."""
    import fastcluster
    from scipy.spatial.distance import pdist

    return fastcluster.linkage(pdist(gallery), method, preserve_input=False)


def fastcluster_vectors(gallery, method):
    """Without a matrix of distances."""
    import fastcluster

    return fastcluster.linkage_vector(gallery, method)


def scikit_learn_tree(gallery, method):
    """Its tree without connections."""
    from sklearn.cluster import linkage_tree, ward_tree

    if method == "ward":
        far = ward_tree(gallery, return_distance=True)[4]
    else:
        far = linkage_tree(gallery, linkage=method, return_distance=True)[4]
    return np.asarray(far)[:, None] * np.ones(3)


METHODS = ("ward", "average", "complete")
VARIANTS = {
    "scipy": by_tree(scipy_linkage),
    "fastcluster": by_tree(fastcluster_linkage),
    "fastcluster vectors": by_tree(fastcluster_vectors),
    "scikit-learn tree": by_tree(scikit_learn_tree),
    "fast-reid compiled": fastreid_compiled,
    "torchreid Python": torchreid_python,
    "scikit-learn": scikit_learn,
    "open-metric-learning": open_metric_learning,
    "torchreid": torchreid_reranking,
    "fast-reid": fastreid_jaccard,
    "faiss flat": faiss_flat,
    "numpy": numpy_partition,
}


def main():
    """Runs the case once, says what it gave, then runs it for every line."""
    case = json.loads(sys.argv[1])
    arrays = dict(np.load(case["arrays"]))
    query, gallery = arrays.pop("query"), arrays.pop("gallery")
    task = VARIANTS[case["variant"]]
    if case["task"] in METHODS:
        task = functools.partial(task, method=case["task"])
    few = {k: v[: 64 if "query" in k else 1024] for k, v in arrays.items()}
    task(query[:64], gallery[:1024], few)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    values = task(query, gallery, arrays)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "values": values(), "bytes": 1024 * used}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        task(query, gallery, arrays)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
