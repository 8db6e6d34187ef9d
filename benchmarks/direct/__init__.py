"""DiReCT: are its solvers exact and fast, which curvature does it use, does its selection end a run better?

| script | claim |
|---|---|
| `solver` | The linear program is exact; the paper's problem is solved better and faster than as published |
| `million` | Both objectives over a million stored gradients, time and memory |
| `curvature` | Which estimate finds the Hessian's stiff directions, and at which cost |
| `sketch` | Effect of projecting gradients on the selection, and of clipping them |
| `decay` | Annealing phase of two models on what each method selects |

`pools` makes the pools of records, `published` follows the paper's steps literally.
"""
