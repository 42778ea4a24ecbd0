"Studies: what is compared, how fast the pieces are, and how experiments are run."
