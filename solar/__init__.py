"""solar: LoRA-family fine-tuning in JAX and SOLAR compression of the adapters it trains."""

__version__ = "0.1.0"
