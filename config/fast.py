# The least time to nanoGPT's best: validation loss 1.4682 on Tiny Shakespeare in 13 minutes on 2 cores.
# Muon multiplies in bfloat16; on a processor without instructions for that, config/laptop.py is faster.
arch = "modern"
optimizer = "muon"
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.05
batch_size = 16
learning_rate = 3e-3
warmup_iters = 50
max_iters = 1500
lr_decay_iters = 1500
eval_interval = 500
