"""A trained ECG encoder in use: from files to vectors and phenotypes, as a command, as ONNX."""

from ptacl.use.embed import left_out
from ptacl.use.phenotypes import ECGEncoder

__all__ = ["ECGEncoder", "left_out"]
