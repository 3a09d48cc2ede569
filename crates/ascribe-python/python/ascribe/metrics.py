"""Is an attribution right? Measures against retraining, labels and removals; NaN where one is not defined.

Tables are float64 ``[queries, players]``; every call releases the interpreter's lock.

>>> import numpy as np
>>> scores = np.array([[1.0, 2.0, 4.0]])
>>> included = np.array([[True, False, True], [True, True, False], [False, True, True]])
>>> lds(scores, included, losses=-(included @ scores.T).T.copy()).tolist()
[1.0]
"""

from ._ascribe import (
    auprc,
    bootstrap_mean,
    brittleness,
    evaluate,
    found_area,
    hit_at,
    label_top1,
    lds,
    lds_removed,
    loo,
    paired_difference,
    pearson,
    recall_at,
    reciprocal_ranks,
    removal_effect,
    roc_auc,
    share_error,
    spearman,
    tail_patch,
)

__all__ = [
    "auprc",
    "bootstrap_mean",
    "brittleness",
    "evaluate",
    "found_area",
    "hit_at",
    "label_top1",
    "lds",
    "lds_removed",
    "loo",
    "paired_difference",
    "pearson",
    "recall_at",
    "reciprocal_ranks",
    "removal_effect",
    "roc_auc",
    "share_error",
    "spearman",
    "tail_patch",
]
