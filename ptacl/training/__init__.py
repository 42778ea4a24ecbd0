"How a system is trained: batches of a run, device and processes, optimiser, checkpoint, loop, log, run folder; pre-training and fine-tuning by the same loop."
