"""A trained ECG encoder in use: from files to vectors and phenotypes, as a command, as ONNX."""

from importlib import import_module

__all__ = ["ECGEncoder", "left_out"]
_HOMES = {"ECGEncoder": "ptacl.use.phenotypes", "left_out": "ptacl.use.embed"}


def __getattr__(name: str) -> object:
    "Import a name when it is asked for, so that the command can answer `--help` at once."
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "ECGEncoder":
        import_module("ptacl.use.report")  # brings encoder.report
    return getattr(import_module(_HOMES[name]), name)
