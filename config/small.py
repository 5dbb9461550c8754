# For a processor without bfloat16 (the program says "on cpu in float32"): half the parameters of
# config/laptop.py, which learn more in ten minutes there.
arch = "modern"
optimizer = "muon"
n_layer = 2
n_head = 4
n_embd = 256
dropout = 0.0  # raise it when train loss falls and val loss rises
weight_decay = 2.0
batch_size = 8
learning_rate = 2e-3
min_lr = 7e-5
warmup_iters = 50
max_iters = 1500
lr_decay_iters = 1500
eval_interval = 500
sample_interval = 500
