# For a machine with no GPU: a third of the parameters, small steps, and what docs/recipes.md found to help.
arch = "modern"
optimizer = "muon"
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.05  # 0 is better where the text is read once
weight_decay = 2.0  # twenty times the usual, since a megabyte is little text
batch_size = 16
learning_rate = 2.8e-3
warmup_iters = 50
max_iters = 1050
lr_decay_iters = 1050
eval_interval = 350
sample_interval = 350  # to see it learn to speak
