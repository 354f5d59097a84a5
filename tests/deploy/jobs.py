"""The job of several tests: five clients of unequal digits, a small model, at two sites."""

from __future__ import annotations

DIGITS = """
atoll = 1
seed = 3
rounds = {rounds}

[data]
name = "digits"
clients = 5
partition = {{ name = "dirichlet", alpha = 0.5 }}

[task]
name = "classification"
model = {{ name = "mlp", inputs = 64, hidden = [16], outputs = 10 }}

[local]
name = "sgd"
lr = 0.1

[algorithm]
name = "{algorithm}"
"""
TWO_SITES = """
[sites]
north = ["client-0", "client-1", "client-2"]
south = ["client-3", "client-4"]
"""
