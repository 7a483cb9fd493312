"""The same GPT in PyTorch, independent of the library: the oracle of tests, the peer of benchmarks."""

import torch
import torch.nn.functional as F  # noqa: N812  its usual name


def tensors_like(model, dtype):
    """Return the parameters of a minitransformer GPT as PyTorch leaves, by path."""
    return {
        path: torch.tensor(parameter.value, dtype=dtype, requires_grad=True)
        for path, parameter in model.parameters().items()
    }


def logits(tensors, config, ids):
    """Return the logits (B, T, V) of a pre-norm GPT with learned positions."""
    width, heads = config.width, config.heads

    def norm(x, path):
        return F.layer_norm(x, (width,), tensors[f"{path}.gain"], tensors.get(f"{path}.bias"), config.eps)

    def affine(x, path):
        bias = tensors.get(f"{path}.bias")
        return x @ tensors[f"{path}.weight"] if bias is None else x @ tensors[f"{path}.weight"] + bias

    x = F.embedding(ids, tensors["embedding.table"]) + tensors["positions.table"][: ids.shape[1]]
    for index in range(config.layers):
        block = f"blocks.{index}"
        parts = affine(norm(x, f"{block}.norm1"), f"{block}.attention.query_key_value")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts.split(width, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + affine(y.transpose(1, 2).flatten(2), f"{block}.attention.output")
        h = affine(norm(x, f"{block}.norm2"), f"{block}.feed_forward.hidden.0")
        h = F.gelu(h, approximate={"gelu_tanh": "tanh", "gelu_exact": "none"}[config.activation])
        x = x + affine(h, f"{block}.feed_forward.output")
    return norm(x, "norm") @ tensors["embedding.table"].T


def tensors_to_decode(model, dtype):
    """Return the parameters of a minitransformer GPT, by path; weights are (F, D), as in PyTorch's layers."""
    tensors = {
        path: torch.tensor(parameter.value).to(dtype) for path, parameter in model.parameters().items()
    }
    return {
        path: tensor.T.contiguous() if path.endswith("weight") else tensor for path, tensor in tensors.items()
    }


def decode(tensors, config, ids, cache, place):
    """Return the logits (B, V) after ``ids`` (B, T), which follow ``place`` tokens; 0 if T is not 1.

    ``tensors`` are those of ``tensors_to_decode``. ``cache`` has the keys and the values, (B, H, P, K), of
    every layer; those of ``ids`` are written there.
    """
    width, end = config.width, place + ids.shape[1]

    def norm(x, path):
        return F.layer_norm(x, (width,), tensors[f"{path}.gain"], tensors.get(f"{path}.bias"), config.eps)

    def affine(x, path):
        return F.linear(x, tensors[f"{path}.weight"], tensors.get(f"{path}.bias"))

    x = F.embedding(ids, tensors["embedding.table"]) + tensors["positions.table"][place:end]
    for index, (keys, values) in enumerate(cache):
        block = f"blocks.{index}"
        parts = affine(norm(x, f"{block}.norm1"), f"{block}.attention.query_key_value")
        q, k, v = (part.unflatten(-1, (config.heads, -1)).transpose(1, 2) for part in parts.split(width, -1))
        keys[:, :, place:end], values[:, :, place:end] = k, v
        y = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], is_causal=place == 0)
        x = x + affine(y.transpose(1, 2).flatten(2), f"{block}.attention.output")
        h = affine(norm(x, f"{block}.norm2"), f"{block}.feed_forward.hidden.0")
        h = F.gelu(h, approximate={"gelu_tanh": "tanh", "gelu_exact": "none"}[config.activation])
        x = x + affine(h, f"{block}.feed_forward.output")
    return F.linear(norm(x[:, -1], "norm"), tensors["embedding.table"])


def mean_loss(tensors, config, ids, targets):
    """Return the mean cross-entropy in nats per token."""
    scores = logits(tensors, config, ids)
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


def adamw(tensors, arguments, fused=None):
    """Return PyTorch's AdamW with nanoGPT's settings: decay on tensors of two or more dimensions."""
    decayed = [tensor for tensor in tensors.values() if tensor.ndim >= 2]
    others = [tensor for tensor in tensors.values() if tensor.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": arguments.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=fused,
    )


def train_step(tensors, config, optimiser, ids, targets, learning_rate, max_grad_norm):
    """Run one training step; return the loss before it."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.zero_grad()
    loss = mean_loss(tensors, config, ids, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(tensors.values(), max_grad_norm)
    optimiser.step()
    return loss.item()
