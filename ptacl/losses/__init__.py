"What training minimises, as plain functions of tensors: contrasts, local contrast, errors of phenotypes."

from ptacl.losses.contrast import info_nce
from ptacl.losses.local import local_info_nce

__all__ = ["info_nce", "local_info_nce"]
