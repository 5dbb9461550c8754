# For a machine with no GPU: a third of the parameters, small steps, and what helped in docs/experiments.md.
arch = "modern"
match = 4
optimizer = "muon"
n_ensemble = 2  # two stacks of two layers learn more than one of four, in the same time
n_layer = 2
n_head = 4
n_embd = 256
dropout = 0.0  # raise it when train loss falls and val loss rises
weight_decay = 2.0  # twenty times the usual, since a megabyte is little text
batch_size = 16
learning_rate = 2.8e-3
warmup_iters = 50
max_iters = 1050
lr_decay_iters = 1050
eval_interval = 350
sample_interval = 350  # to see it learn to speak
