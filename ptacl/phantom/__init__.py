"The simulated cohort: paired ECG and cine of one heart, with known truth."
