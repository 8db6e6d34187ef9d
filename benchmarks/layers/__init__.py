"""Layer policies: does training two blocks at a time pay? LISA and GRASS against full training and LoRA.

`run` is the script, one result file per model: held-out loss at equal steps, step time, and memory by part.

    python -m benchmarks.layers.run --model stories       # 0.26 M parameters, plays; minutes
    python -m benchmarks.layers.run --model smollm2       # SmolLM2-135M, GSM8K; an hour on a CPU

`arms` says what is compared on which data, `training` makes one run and records its memory, `timing` times
steps, and `page` writes the tables.
"""
