"""Gradients of PyTorch models, one projected row per example, into a feature store.

::

    import ascribe
    from ascribe.torch import collect, gradients

    store = collect(model, train_ids, "out/store", progress=True)      # resumes if it was killed
    queries = gradients(model, query_ids)
    print(ascribe.score(store, queries, ascribe.fit(store)).top(5))

Linear, GPT-2's Conv1D, Conv2d and Embedding of any ``torch.nn.Module``, on CPU or CUDA.
"""

from .collect import Collector, Loss, causal_lm_loss, collect, gradients
from .data import corpus_digest, example_ids, model_digest, weights_digest
from .taps import Tap, find_taps
from .trainer import AscribeCallback

__all__ = [
    "AscribeCallback",
    "Collector",
    "Loss",
    "Tap",
    "causal_lm_loss",
    "collect",
    "corpus_digest",
    "example_ids",
    "find_taps",
    "gradients",
    "model_digest",
    "weights_digest",
]
