# Fine-tune a model of yours on another text, such as your own play after all of Shakespeare:
#   python train_drama.py config/finetune.py --init_from=model/plays --dataset=mine --out_dir=model/mine
optimizer = "muon"
dropout = 0.2  # a short text is soon memorised
weight_decay = 0.5
batch_size = 16
learning_rate = 3e-4  # small steps: the model knows how plays are written
min_lr = 3e-5
warmup_iters = 10
max_iters = 200
lr_decay_iters = 200
eval_interval = 20  # the best model is kept, which may come early
