"""What all benchmarks share.

- `result_file`: result files with provenance; `folders`: where benchmarks read and write;
- `command_line`: the command line of a benchmark, silence for what libraries print;
- `clocks`, `memory`: seconds and bytes; `own_process`: a function in a process of its own, for peak memory;
- `tables`: Markdown tables, paired comparisons, rows of the index; `figure_style`: the style of all figures;
- `records`: real data, cut into parts that share no question;
- `small_llama`, `smollm2`: the models that several benchmarks train.
"""
