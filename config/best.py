# The least validation loss: the size of the full run, with a large weight decay; half an hour on 2 cores.
arch = "modern"
optimizer = "muon"
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.1
weight_decay = 2.0
batch_size = 16
learning_rate = 3e-3
warmup_iters = 50
max_iters = 950
lr_decay_iters = 950
eval_interval = 475
