"""The demo: a real photograph through whole networks, with PyTorch's operators and with fastconv's, and what each
pooling makes of it.

Nothing in here is imported by ``import fastconv``; it needs matplotlib (``pip install 'fastconv[demo]'``).
"""
