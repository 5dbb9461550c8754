# Fine-tune OpenAI's GPT-2 (124M parameters; a GPU with 12 GB, or patience):
#   pip install huggingface_hub safetensors && python prepare.py --dataset=gpt2
init_from = "gpt2"  # its shape and its tokenizer come with it
dataset = "gpt2"
out_dir = "model/gpt2"
block_size = 512  # of its 1,024: fits a smaller GPU
batch_size = 4
gradient_accumulation_steps = 8
dropout = 0.1
learning_rate = 5e-5  # small steps: GPT-2 knows the language already
min_lr = 5e-6
warmup_iters = 20
max_iters = 300  # about fifteen times through the text; more only overfits
lr_decay_iters = 300
eval_interval = 50
