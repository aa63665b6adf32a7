"""solar: LoRA-family fine-tuning in JAX and SOLAR compression of the adapters it trains.

`solar.compress`, `expand`, `inspect`, `verify`, `frames` and `limit` are the verbs of
`python -m solar`.
"""

import os

__version__ = "0.1.0"
__all__ = ["compress", "expand", "frames", "inspect", "limit", "verify"]

# Only tokenizers of transformers are used; its notice that torch is missing would mislead.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def __getattr__(name: str):
    # Imported when first asked for: `import solar.models` should not pay for the codec.
    if name in __all__:
        from solar import api

        return getattr(api, name)
    raise AttributeError(f"module 'solar' has no attribute {name!r}")
