"""The retrieval benchmarks' own side, run by `benchmarks.retrieval` as a process."""

import functools
import json
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster import hierarchy
from sklearn.metrics import adjusted_rand_score

from market_jax import devices
from market_jax.metrics import ranking
from market_jax.retrieval import clustering, distances, search
from market_jax.retrieval.jaccard import jaccard
from market_jax.retrieval.k_reciprocal import k_reciprocal

K = 50
IDENTITIES = 750  # that the made galleries hold


def judge(found, labels):
    """The values that are compared."""
    result = ranking.evaluate(found, **labels)
    return {"mAP": result.mAP, "rank1": float(result.cmc[0])}


def rank(query, gallery, labels):
    """Metrics from features."""
    result = ranking.evaluate_features(query, gallery, **labels)
    return lambda: {"mAP": result.mAP, "rank1": float(result.cmc[0])}


def rerank(query, gallery, labels):
    """k-reciprocal re-ranking from features, with the reference code's two oddities."""
    sides = {"feature": query}, {"feature": gallery}
    plain = distances.compute(query, gallery, "cosine")
    reranked = k_reciprocal(*sides, plain, one_more=True, squared=True)
    return lambda: judge(reranked, labels)


def find(query, gallery, labels):
    """The nearest K."""
    near, at = search.top_k(query, gallery, K)
    return lambda: {"distance": float(near.mean()), "recall": search.recall(at, at)}


def find_ivf(query, gallery, labels):
    """Approximately, by faiss."""
    index = search.build_index(gallery, "IVF256,Flat")
    near, at = search.search_index(index, query, K)
    exact = search.top_k(query, gallery, K)[1]
    return lambda: {"distance": float(near.mean()), "recall": search.recall(at, exact)}


def cluster(query, gallery, labels, *, method):
    """The tree of a linkage."""
    tree = clustering.linkage(gallery, method)
    return lambda: {"height": float(tree[:, 2].mean())}


def cluster_neighbours(query, gallery, labels):
    """Ward's tree over nearest neighbours alone, and its agreement with the exact one."""
    tree = clustering.neighbour_linkage(gallery)

    def judge():
        both = tree, clustering.linkage(gallery)
        cuts = [hierarchy.cut_tree(t, n_clusters=IDENTITIES)[:, 0] for t in both]
        height = float(tree[:, 2].mean())
        return {"height": height, "adjusted Rand index": adjusted_rand_score(*cuts)}

    return judge


def find_neighbours(query, gallery, labels):
    """Jaccard distances of the gallery, where they are below 0.6."""
    found = jaccard(gallery, below=0.6)
    return lambda: {"pairs": found.nnz / len(gallery), "distance": float(found.data.mean())}


METHODS = ("ward", "average", "complete")
LINKAGES = {method: functools.partial(cluster, method=method) for method in METHODS}
TASKS = {"ranking": rank, "reranking": rerank, "search": find, "jaccard": find_neighbours}
TASKS |= LINKAGES
VARIANTS = {"market_jax IVF256": find_ivf, "market_jax neighbours": cluster_neighbours}


def products(task, query, gallery):
    """The matrix products that the task cannot do without: its physical limit."""
    if task == "reranking":
        query = gallery = np.concatenate([query, gallery])
    if task in (*METHODS, "jaccard"):
        query = gallery

    @jax.jit
    def product(a, b):
        return jnp.max(a @ b.T, axis=1)

    def run(query, gallery, labels):
        for start in range(0, len(query), 512):
            product(query[start : start + 512], gallery).block_until_ready()
        return dict

    return run, query, gallery


def main():
    """Runs the case once, says what it gave, then runs it for every line."""
    case = json.loads(sys.argv[1])
    devices.start()
    arrays = dict(np.load(case["arrays"]))
    query, gallery = arrays.pop("query"), arrays.pop("gallery")
    task = VARIANTS.get(case["variant"], TASKS[case["task"]])
    if case["variant"] == "matrix product":
        task, query, gallery = products(case["task"], query, gallery)
    task(
        query[:64],
        gallery[:1024],
        {k: v[: 64 if "query" in k else 1024] for k, v in arrays.items()},
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task(query, gallery, arrays)  # compiles
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
