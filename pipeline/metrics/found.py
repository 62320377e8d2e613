"""What metrics share: the ranks and the clusters of test embeddings, each computed once, when it is asked for."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.metrics.clustering import clusters
from pipeline.metrics.groups import Groups, LeftOut, per_query_in_others
from pipeline.metrics.ranks import Scores
from pipeline.metrics.retrieval import per_query


class Found:
    """Test embeddings, and what a search and a clustering of them find.

    embeddings (n, d) float32, rows of unit length, and labels (n,) int64 are of all images, queries and gallery
    together. `search` holds embeddings and labels of the queries, and with a gallery `gallery` and `gallery_labels`.
    `recall_at` are the K of Recall@K. `seed` is the run's. `groups` (n,) int64 are the images' groups, if they have
    groups."""

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        search: dict[str, Tensor],
        recall_at: list[int],
        seed: int,
        groups: Tensor | None = None,
    ) -> None:
        self.embeddings, self.labels, self.search = embeddings, labels, search
        self.recall_at, self.seed, self.groups = recall_at, seed, groups
        self._ranks: dict[str, Scores] = {}
        self._clusters: dict[str, NDArray[np.integer]] = {}

    @property
    def query_labels(self) -> Tensor:
        """The labels of the queries, (q,) int64."""
        return self.search["labels"]

    def ranks(self, counting: str = "exact") -> Scores:
        """For each query: the number of irrelevant images before its first hit, (q,) int64; average precision at R and
        R-Precision, (q,) float64 each, nan if R = 0. `counting` decides only the first: see
        `pipeline.metrics.retrieval.retrieval`."""
        if counting not in self._ranks:
            search = self.search
            gallery = search.get("gallery"), search.get("gallery_labels")
            self._ranks[counting] = per_query(search["embeddings"], search["labels"], *gallery, counting)
        return self._ranks[counting]

    def any_ranks(self) -> Scores:
        """The ranks by any counting, for metrics that do not read the first hit."""
        return next(iter(self._ranks.values())) if self._ranks else self.ranks()

    def in_groups(self, left_out: LeftOut) -> Groups:
        """The groups of queries and of what is searched. Raises ValueError if the images have none."""
        if self.groups is None:
            raise ValueError("the images of this dataset have no groups")
        labels, groups = self.query_labels, self.groups.to(self.query_labels.device)
        if "gallery" not in self.search:
            return Groups(labels, groups, labels, groups, left_out)
        count = len(labels)
        return Groups(labels, groups[:count], self.search["gallery_labels"], groups[count:], left_out)

    def ranks_in_others(self, left_out: LeftOut, counting: str = "exact") -> Scores:
        """As `ranks`, where images of the query's group are left out: see `pipeline.metrics.groups`."""
        search = self.search
        return per_query_in_others(search["embeddings"], search.get("gallery"), self.in_groups(left_out), counting)

    def clusters(self, kmeans: str) -> NDArray[np.integer]:
        """The k-means cluster of every image, (n,), with as many clusters as classes: see
        `pipeline.metrics.clustering.clusters`."""
        if kmeans not in self._clusters:
            self._clusters[kmeans] = clusters(self.embeddings, self.labels, seed=self.seed, kmeans=kmeans)
        return self._clusters[kmeans]
