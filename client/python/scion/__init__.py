"""Scion in Python: models whose experts are grouped by domain.

    scion.configuration_scion, scion.modeling_scion    the Hugging Face classes (needs the extra "train")

Importing `scion` imports none of them.
"""

__version__ = "0.1.0"
