"""What all benchmarks share.

- `frame`: result files with provenance, command lines, folders that are complete or absent;
- `tables`: Markdown tables, paired comparisons, rows of the index;
- `figures`: the style of all figures;
- `process`: a function in a process of its own, for peak memory;
- `measure`: clocks, memory, silence;
- `records`: real data, cut into parts that share no question;
- `small_llama`, `smollm2`: the models that several benchmarks train.
"""
