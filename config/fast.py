# The shortest time to nanoGPT's best, 1.4697 on Tiny Shakespeare: 1.4550 in 5 minutes on 2 cores (val loss).
arch = "modern"
optimizer = "muon"
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.05
weight_decay = 2.0
batch_size = 16
learning_rate = 2.8e-3
warmup_iters = 50
max_iters = 840
lr_decay_iters = 840
eval_interval = 420
