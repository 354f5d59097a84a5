"""A job that is small enough to be carried out in a second: digits, four clients, three rounds."""

JOB = """atoll = 1
rounds = 3
[data]
name = "digits"
clients = 4
[task]
name = "classification"
[task.model]
name = "mlp"
inputs = 64
hidden = [4]
[local]
name = "sgd"
batch_size = 64
[algorithm]
name = "fedavg"
"""
