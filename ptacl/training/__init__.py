"How a system is trained: batches, device, optimiser, checkpoint, loop, log; pre-training and fine-tuning."
