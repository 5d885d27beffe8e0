"""Choose a pattern for each linear so that a model reaches a speed or density with the least error.

    speed.py       the time of a linear on a GPU, from tables of measurements (rows.py; the .csv files here)
    gpus.py        the GPUs whose tables the package contains
    fused.py       linears as a server fuses them, by input group: q/k/v, o, gate/up, down of each layer
    measure.py     the error of each pattern for each group: only this group compressed, in its dense layer
    knapsack.py    the solver: the least sum of errors within a budget of costs
    allocation.py  errors and times of each group -> a pattern for each, and the rules of a recipe
    choose.py      the whole process, from a plan and a target to the allocation
    written.py     the allocation as a summary and as a recipe file
    expected.py    the expected speed-up of a planned model

The gain of a pattern depends on the GPU: 2:8 makes the linears of Qwen2.5-7B 1.38 times as fast as dense
INT8 on an A100 and 1.03 times on an RTX 5080 (4096 tokens, published figures).
"""
