"""What only a GPU can show: the tests with the marker `gpu`, and memory and speed of training a 7B model.

    python -m benchmarks.gpu.run

`run` is the script and `training` what it measures. On a machine without a GPU it says so and does nothing.
"""
