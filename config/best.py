# The least validation loss: longer than config/fast.py, with more against overfitting.
arch = "modern"
optimizer = "muon"
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.1
corruption = 0.05
weight_decay = 2.0
batch_size = 16
learning_rate = 4e-3
warmup_iters = 50
max_iters = 2000
lr_decay_iters = 2000
eval_interval = 500
