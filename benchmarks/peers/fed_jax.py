"""FedJAX 0.0.17: its fed_avg algorithm over for_each_client with the jit backend, clients in memory, one process.

XLA takes the threads that it likes. The network is written in haiku with PyTorch's initial distribution, so that all
systems start alike.
"""

from __future__ import annotations

from typing import Any

from workload import BATCH, EPOCHS, LR, Measured, job, read

TEST_BATCH = 500


def main() -> None:
    asked = job()
    measured = Measured(asked)
    jax, jnp, haiku = measured.importing("jax", "jax.numpy", "haiku")
    import fedjax
    import numpy as np
    from fedjax.algorithms import fed_avg

    data, workload = read(asked.data), asked.workload

    def dense(size: int, inputs: int) -> Any:
        bound = inputs**-0.5
        return haiku.Linear(size, w_init=haiku.initializers.RandomUniform(-bound, bound))

    def convolution(filters: int, inputs: int) -> Any:
        bound = (25 * inputs) ** -0.5
        return haiku.Conv2D(filters, 5, padding="SAME", w_init=haiku.initializers.RandomUniform(-bound, bound))

    def mlp(x: Any) -> Any:
        x = x.reshape(x.shape[0], 784)
        x = jax.nn.relu(dense(200, 784)(x))
        return dense(10, 200)(jax.nn.relu(dense(200, 200)(x)))

    def cnn(x: Any) -> Any:
        x = x.reshape(x.shape[0], 28, 28, 1)
        for filters, inputs in ((32, 1), (64, 32)):
            x = haiku.max_pool(jax.nn.relu(convolution(filters, inputs)(x)), (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(dense(512, 3136)(x.reshape(x.shape[0], -1)))
        return dense(10, 512)(x)

    net = haiku.without_apply_rng(haiku.transform(mlp if workload.model == "mlp" else cnn))

    def loss(params: Any, batch: Any, rng: Any) -> Any:
        logits = jax.nn.log_softmax(net.apply(params, batch["x"]))
        return -jnp.mean(jnp.take_along_axis(logits, batch["y"][:, None], axis=1))

    fedjax.set_for_each_client_backend("jit")
    held = {
        b"%04d" % k: {"x": data.x[k], "y": data.y[k].astype(np.int32)} for k in range(workload.clients)
    }  # FedJAX names clients in bytes
    sampler = fedjax.client_samplers.UniformGetClientSampler(fedjax.InMemoryFederatedData(held), workload.cohort, seed=0)
    algorithm = fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(LR),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=EPOCHS),
    )
    state = algorithm.init(net.init(jax.random.PRNGKey(0), jnp.asarray(data.x[0, :1])))
    for _ in range(asked.rounds):
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        measured.round_ended()
    guess = jax.jit(lambda params, x: jnp.argmax(net.apply(params, x), -1))
    hits = sum(
        int((guess(state.params, data.test_x[a : a + TEST_BATCH]) == data.test_y[a : a + TEST_BATCH]).sum())
        for a in range(0, len(data.test_y), TEST_BATCH)
    )
    measured.write(hits / len(data.test_y))


if __name__ == "__main__":
    main()
