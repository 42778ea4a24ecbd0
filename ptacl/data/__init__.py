"What is read and how it is prepared: ECG and cine files, beats, phase, cohorts, stores, augmentation, batches."
