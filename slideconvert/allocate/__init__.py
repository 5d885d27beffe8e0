"""A pattern for each linear, so that a model reaches a speed or size with the least error.

    speed.py       how long a linear takes on a GPU, by tables of measurements (rows.py; the .csv files here)
    gpus.py        the GPUs whose tables come with the package
    fused.py       linears as a server fuses them, by input group: q/k/v, o, gate/up, down of each layer
    measure.py     the error of each pattern for each group: the group alone compressed, in its layer of the dense model
    knapsack.py    the search: the least sum of errors within a budget of costs
    allocation.py  errors and times of each group -> a pattern for each, and the rules of a recipe
    choose.py      all of it, from a plan and a target to the allocation
    written.py     the allocation as a summary and as a recipe file
    expected.py    the expected speed-up of a planned model

The same pattern pays differently on different GPUs: 2:8 makes the linears of Qwen2.5-7B 1.38 times as fast as dense
INT8 on an A100 and 1.03 times on an RTX 5080 (4096 tokens, published figures).
"""
