# config/plays.py with a larger model, for a GPU; untested. Computed: six minutes on a T4, one on an A100.
dataset = "plays"
arch = "modern"
match = 3
optimizer = "muon"
n_layer = 8
n_head = 8
n_embd = 512
dropout = 0.1  # the text is read seven times
weight_decay = 0.5
batch_size = 64
learning_rate = 2e-3
warmup_iters = 100
eval_interval = 250
max_iters = 2000
lr_decay_iters = 2000
