"""Which pattern for which linear, so that a model gets a wanted speed or size and loses the least.

    speed.py       how long a linear takes on a GPU, by tables of measurements (rows.py; the .csv files here)
    fused.py       linears as a server fuses them: q/k/v, o, gate/up, down of each layer
    measure.py     what each pattern costs each group: the group alone compressed, in its layer of the dense model
    knapsack.py    the search: the least sum of errors within a budget of costs
    allocation.py  errors and times of each group -> a pattern for each, and a recipe that says so
    choose.py      all of it, from a plan and a target to what was chosen
    written.py     what was chosen, in words and as a recipe file
    expected.py    how fast a planned model should be

The same pattern pays differently on different GPUs: 2:8 makes the linears of Qwen2.5-7B 1.38 times as fast as dense
INT8 on an A100 and 1.03 times on an RTX 5080 (4096 tokens, published figures).
"""
