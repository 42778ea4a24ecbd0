"Pictures: ECG paper, cine strips and movies, curves, results, dashboard and explorer."
