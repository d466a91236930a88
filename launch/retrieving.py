"""Examples of retrieval for the report: which pictures of the split lie nearest to what was predicted."""

import numpy as np

from fmri2img.datasets import Dataset
from fmri2img.evaluation.report import RetrievalRow
from fmri2img.evaluation.similarity import similarities
from fmri2img.launch.judging import seen_pictures
from fmri2img.launch.made import Made

SHOWN, NEAREST = 6, 5


def retrieval_examples(dataset: Dataset, made: Made) -> tuple[str, list[RetrievalRow]]:
    """The space, and some items from the best to the worst rank of the picture seen, with what lies nearest.

    By cosine in the space that the decoder identifies by, or the first one, its features centred on the training mean.
    """
    space = min(made.retrieval or made.features)
    table = dataset.samples(made.job.subjects[0], made.job.split)
    rows = np.unique(table.nsd_id, return_index=True)[1]
    ids = table.nsd_id[rows]
    centre = dataset.feature_statistics(space)[0]
    true = (dataset.read_features(table, rows, space) - centre).reshape(len(rows), -1)
    predicted = made.retrieval[space] if space in made.retrieval else made.features[space] - centre
    similarity = similarities(predicted.reshape(len(predicted), -1), true, centre=False)
    index = np.searchsorted(ids, [item["nsd_id"] for item in made.items])
    own = np.take_along_axis(similarity, index[:, None], axis=1)
    rank = 1 + (similarity > own).sum(1)
    order = np.argsort(rank, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int))]
    found = []
    for i in chosen:
        best = np.argsort(-similarity[i], kind="stable")[:NEAREST]
        pictures = seen_pictures(dataset, table, rows[np.append(best, index[i])], made.pictures.shape[1])
        key = str(made.items[i]["key"])
        found.append(RetrievalRow(key, pictures[-1], list(pictures[:-1]), int(rank[i]), len(rows)))
    return space, found
