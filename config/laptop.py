# For a machine with no GPU: a third of the parameters and smaller steps; 12 minutes on 2 cores.
n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.0  # each character is seen eight times only: there is little to overfit
batch_size = 16
learning_rate = 2e-3  # a smaller model takes larger steps
max_iters = 1800
lr_decay_iters = 1800
eval_interval = 200
