"Evaluation of frozen embeddings: metrics, intervals, retrieval, probes, significance and explanations."
