# The shortest time to nanoGPT's best, 1.4697 on Tiny Shakespeare: 1.4481 in bfloat16, 1.4490 in float32.
arch = "modern"
match = 4
optimizer = "muon"
n_layer = 2
n_head = 4
n_embd = 256
dropout = 0.0
weight_decay = 2.0
batch_size = 16
learning_rate = 2.8e-3
warmup_iters = 50
max_iters = 640
lr_decay_iters = 640
eval_interval = 320
