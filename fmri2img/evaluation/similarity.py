"""How alike every prediction is to every candidate: all pairs at once, in blocks of features.

Legend of shapes: n items, m candidates, d features.
"""

import numpy as np
import torch

Array = np.ndarray | torch.Tensor

CHUNK_FEATURES = 8192
CHUNK_PAIRS = 64
# Rounding alone must neither turn a constant into a signal nor break a tie.
FLAT = 1e-10
TIE = 1e-12
SLACK = 1e-5  # how far a similarity may be off in single precision, with a wide margin


def similarities(a: Array, b: Array, *, centre: bool, index: np.ndarray | None = None) -> np.ndarray:
    """Cosine similarity of every row of a (n, d) with every row of b (m, d); Pearson if centred. (n, m) float64.

    A row without variance (or, uncentred, of zeros) has similarity 0 with all. Features are read in blocks of
    columns, so that features of 10^5 columns need no float64 copy.

    With `index` (n,), the true candidate of each row, what is asked is only which similarities are above that of the
    true pair, in its row and in its column. Then many single-precision features are multiplied in single precision,
    in half the time, and the true pairs and all that come near them are computed again in double precision: every
    order and every tie is the one of double precision.
    """
    x, y = (torch.as_tensor(value).flatten(1) for value in (a, b))
    rough = index is not None and x.shape[1] > CHUNK_FEATURES and x.dtype == y.dtype == torch.float32
    found = _Pairs(x, y, centre)
    product = found.product(torch.float32 if rough else torch.float64)
    if rough and index is not None and not found.settle(product, index):
        product = found.product(torch.float64)
    return np.asarray(product)


class _Pairs:
    """Rows x (n, d) and y (m, d), with their means and inverse lengths."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, centre: bool) -> None:
        self.rows = (x, y)
        self.means = [t.mean(1, keepdim=True, dtype=torch.float64) if centre else 0.0 for t in self.rows]
        self.inverse = [self._inverse(i) for i in (0, 1)]

    def product(self, dtype: torch.dtype) -> np.ndarray:
        """All similarities (n, m) float64, multiplied in `dtype` and summed over blocks in float64."""
        x, y = self.rows
        total = torch.zeros(len(x), len(y), dtype=torch.float64)
        for start in range(0, x.shape[1], CHUNK_FEATURES):
            columns = slice(start, start + CHUNK_FEATURES)
            total += self._unit(0, columns, dtype) @ self._unit(1, columns, dtype).T
        return np.asarray(total.numpy())

    def settle(self, found: np.ndarray, index: np.ndarray) -> bool:
        """Put exact values where a rough one is near that of the true pair; False where that is too often."""
        n = len(index)
        exact = self.exact(np.arange(n), index)
        found[np.arange(n), index] = exact
        near = np.abs(found - exact[:, None]) <= SLACK
        rows, others = np.nonzero(np.abs(found[:, index] - exact[None]) <= SLACK)
        near[rows, index[others]] = True
        near[np.arange(n), index] = False
        near[(self.inverse[0] == 0).numpy().ravel()] = False  # without variance: exactly 0 already
        near[:, (self.inverse[1] == 0).numpy().ravel()] = False
        rows, columns = np.nonzero(near)
        if len(rows) > 64 * sum(found.shape):
            return False
        found[rows, columns] = self.exact(rows, columns)
        return True

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Similarities of some pairs, (k,) float64."""
        found = np.zeros(len(rows))
        for pair in range(0, len(rows), CHUNK_PAIRS):
            part = slice(pair, pair + CHUNK_PAIRS)
            chosen = [torch.from_numpy(places[part]) for places in (rows, columns)]
            for start in range(0, self.rows[0].shape[1], CHUNK_FEATURES):
                block = slice(start, start + CHUNK_FEATURES)
                a, b = (self._unit(i, block, torch.float64, chosen[i]) for i in (0, 1))
                found[part] += torch.linalg.vecdot(a, b).numpy()
        return found

    def _unit(
        self, i: int, columns: slice, dtype: torch.dtype, rows: torch.Tensor | slice = slice(None)
    ) -> torch.Tensor:
        """Some columns of some rows, centred and divided by the row's length."""
        mean = self.means[i]
        block = self.rows[i][:, columns][rows].to(torch.float64)
        block = block - (mean[rows] if isinstance(mean, torch.Tensor) else mean)
        return (block * self.inverse[i][rows]).to(dtype)

    def _inverse(self, i: int) -> torch.Tensor:
        """One over the length of each centred row, (rows, 1); 0 for a row without variance."""
        squares, raw = (torch.zeros(len(self.rows[i]), 1, dtype=torch.float64) for _ in range(2))
        for start in range(0, self.rows[i].shape[1], CHUNK_FEATURES):
            block = self.rows[i][:, start : start + CHUNK_FEATURES].to(torch.float64)
            raw += (block * block).sum(1, keepdim=True)
            block = block - self.means[i]
            squares += (block * block).sum(1, keepdim=True)
        return torch.where(squares > FLAT**2 * raw, squares, torch.inf).rsqrt()


def row_correlations(a: Array, b: Array) -> np.ndarray:
    """Pearson correlation of each row of a (n, d) with the same row of b, (n,) float64; 0 without variance."""
    pairs = _Pairs(torch.as_tensor(a).flatten(1), torch.as_tensor(b).flatten(1), centre=True)
    every = np.arange(len(a))
    return pairs.exact(every, every)
