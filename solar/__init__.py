"""solar: LoRA-family fine-tuning in JAX and SOLAR compression of the adapters it trains."""

import os

__version__ = "0.1.0"

# Only tokenizers of transformers are used; its notice that torch is missing would mislead.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
