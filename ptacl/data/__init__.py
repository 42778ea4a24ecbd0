"From files to batches: ECG and cine readers, beats, phase, cohorts, stores, augmentation."
