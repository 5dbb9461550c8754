# The lowest validation loss: three stacks of four layers side by side, trained for longer. 1.3339 on
# python prepare.py --source=tinyshakespeare --renamed=8 --dataset=tinyr
arch = "modern"
match = 4
optimizer = "muon"
n_ensemble = 3
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.05
weight_decay = 2.0
batch_size = 16
learning_rate = 2.8e-3
warmup_iters = 50
max_iters = 2300
lr_decay_iters = 2300
eval_interval = 575
