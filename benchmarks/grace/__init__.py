"""GRACE: speed, size, the samples it picks, propagated scores, and whether `overhead` is respected.

| script | claim |
|---|---|
| `speed` | Selecting 5 to 50 % of 262,144 rows on one core takes seconds |
| `million` | Graph, selection, refresh and repair of a million embeddings, time and memory |
| `importance` | Which importance keeps garbage out of the selection |
| `propagation` | Propagated scores agree with exact ones at a fraction of the cost |
| `overhead` | The time for decisions stays within `overhead` of the training time |

`pools` makes the pools of records. What GRACE does to held-out losses is measured by
`benchmarks.compare.run`, tasks `grace_*`.
"""
