# For a machine with no GPU: a model of a third the size, in a quarter of an hour on 2 cores.
n_layer = 4
n_head = 4
n_embd = 256
