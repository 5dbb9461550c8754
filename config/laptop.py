# For a machine with no GPU: a third of the parameters and small steps; 13 minutes on 2 cores.
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.0  # each character is seen nine times only: dropout would slow it down more than it helps
batch_size = 16
learning_rate = 2e-3  # a smaller model takes larger steps
max_iters = 2100
lr_decay_iters = 2100
eval_interval = 300
