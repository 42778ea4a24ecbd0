"Reports: findings, truth, grammar, parser, metrics, baselines and other people's reports."
