"""Exact norms of matrices known only as sums of outer products, computed in the cheaper of two ways.

Shapes: B samples, T rows (tokens), R x C the matrix G_i = sum_t r_it c_it^T.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
from torch import Tensor

MAX_NUMBERS = 2**22
"""Numbers in a temporary tensor, at most: 16 MiB in float32, and two are alive at a time."""


def squared_norms(r_BTR: Tensor, c_BTC: Tensor, most: int = MAX_NUMBERS) -> Tensor:
    """(B,) ||G_i||^2, in the type of the factors.

    Computed either from the T x T inner products of rows, sum_ts (r_t . r_s)(c_t . c_s), or from G_i in bands
    of
    rows: whichever needs fewer multiplications.

    >>> r, c = torch.randn(2, 7, 3), torch.randn(2, 7, 4)
    >>> g = torch.bmm(r.mT, c)
    >>> torch.allclose(squared_norms(r, c), g.square().sum(dim=(1, 2)), rtol=1e-4)
    True
    """
    batch, length, rows = r_BTR.shape
    columns = c_BTC.shape[2]
    if not length:
        return r_BTR.new_zeros(batch)
    # T^2 (R + C) multiplications by inner products, less 3/8 by symmetry, or T R C by matrices.
    by_inner_products = 0.625 * length * (rows + columns) < rows * columns
    width = length * length if by_inner_products else rows * columns
    norms = _from_inner_products if by_inner_products else _from_matrices
    step = max(1, most // width)
    if step >= batch:
        return norms(r_BTR, c_BTC, most)
    return torch.cat([norms(r, c, most) for r, c in zip(r_BTR.split(step), c_BTC.split(step), strict=True)])


BANDS = 4
"""Bands of inner products: with n of them, symmetry leaves (n + 1) / 2n of the multiplications. More bands
would make the products too narrow for a matrix kernel's speed."""


def _from_inner_products(r_BTR: Tensor, c_BTC: Tensor, most: int) -> Tensor:
    batch, length = r_BTR.shape[:2]
    band = max(1, min(most // (batch * length), -(-length // BANDS)))
    sums = []
    for start in range(0, length, band):
        end = start + band
        # Rows t of the band with rows s >= start: those beyond the band stand for (s, t) as well.
        r_products = torch.bmm(r_BTR[:, start:end], r_BTR[:, start:].mT)
        products = r_products.mul_(torch.bmm(c_BTC[:, start:end], c_BTC[:, start:].mT))
        sums.append(products[..., :band].sum(dim=(1, 2)) + 2 * products[..., band:].sum(dim=(1, 2)))
    # The sum is a square, so only rounding makes it negative.
    return torch.stack(sums).sum(dim=0).clamp(min=0)


def _from_matrices(r_BTR: Tensor, c_BTC: Tensor, most: int) -> Tensor:
    band = max(1, most // (len(r_BTR) * c_BTC.shape[2]))
    sums = [torch.bmm(r.mT, c_BTC).square_().sum(dim=(1, 2)) for r in r_BTR.split(band, dim=2)]
    return torch.stack(sums).sum(dim=0)


def gathered_rows(ids_T: Tensor, c_TC: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix sum_t e_id(t) c_t^T, which is the gradient of a table lookup, without its empty rows.

    Returns:
        (U,) distinct ids, ascending, and (U, C) their rows.
    """
    unique_U, place_T = torch.unique(ids_T, return_inverse=True)
    rows_UC = c_TC.new_zeros(len(unique_U), c_TC.shape[1]).index_add_(0, place_T, c_TC)
    return unique_U, rows_UC


def squared_norm_with_lookup(r_TR: Tensor, c_TC: Tensor, ids_S: Tensor, d_SC: Tensor) -> Tensor:
    """||sum_t r_t c_t^T + sum_s e_id(s) d_s^T||^2, a scalar.

    This is the norm for a weight that is both multiplied with and looked up in, such as a tied embedding.
    """
    ids_U, rows_UC = gathered_rows(ids_S, d_SC)
    # Twice the inner product of both sums, which a tied weight's norm needs: the norms of its two uses do not
    # add up by themselves.
    cross = (r_TR[:, ids_U] * (c_TC @ rows_UC.mT)).sum()
    return squared_norms(r_TR[None], c_TC[None])[0] + 2 * cross + rows_UC.square().sum()
