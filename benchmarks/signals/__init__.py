"""Per-sample signals: cost and accuracy, against training, against other packages, and after kills.

| script | claim |
|---|---|
| `cost` | Time and memory of every set of quantities, relative to an ordinary forward/backward |
| `accuracy` | Inner products of projected gradients are as accurate as those of a dense Gaussian projection |
| `precondition` | The rank-one form of an optimizer's scales is close to the full one |
| `peers` | The same model and batch through a loop, vmap, traker, bergson and dattri |
| `store` | A store is the same, byte by byte, after a scoring run was killed and resumed |

`subjects` has their models and data.
"""
