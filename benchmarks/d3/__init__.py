"""D³: whether edges predict the better order, planted orders, cost of the measurements, the solver.

| script | claim |
|---|---|
| `commutator` | Edges predict which of two steps should come first, by optimizer and learning rate |
| `planted` | D³ finds orders that matter by construction, and runs end better for it |
| `cost` | Cost of losses, Hessian-vector products and trial steps, in forward/backward passes |
| `solver` | Linear orders of generated instances come close to the best known value |
| `published` | The same on published instances |

`two_steps` trains pairs of steps in both orders, `synthetic` has the planted pools, `pools` the real ones.
What orders do to held-out losses on real data is measured by `benchmarks.compare.run`, tasks `orders_*`.
"""
