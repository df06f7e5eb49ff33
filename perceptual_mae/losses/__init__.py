"""Loss terms, one family a file: pure functions from tensors to a scalar.

They compute in float32 (float64 if given), whatever autocast says. Tensors are positional and options keyword-only. A
loss sees tensors, never networks, and knows no other loss.
"""
