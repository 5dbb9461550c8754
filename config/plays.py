# All 38 plays, four times the text: python prepare.py --source=shakespeare --dataset=plays
# A quarter to half an hour on two cores with bfloat16; --minutes=30 fits it to yours.
dataset = "plays"
arch = "modern"
match = 3  # with 4 it goes on with its own repeats more often (docs/experiments.md)
optimizer = "muon"
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.0  # the text is read four times: too seldom to memorise it
weight_decay = 0.5
batch_size = 16
learning_rate = 2.8e-3
warmup_iters = 50
eval_interval = 1500
max_iters = 4300
lr_decay_iters = 4300
