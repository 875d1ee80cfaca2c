"""MAML written out with explicit tensors, sharing no code with the package: what the engines are held against."""

import torch


class ReferenceNet:
    """3x3 convolution of stride 2, batch normalisation, ReLU, spatial mean, linear head, by elementary operations."""

    def __init__(self, ways, filters, seed):
        generator = torch.Generator().manual_seed(seed)

        def tensor(*shape):
            return (0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

        self.parameters = {
            "convolution.weight": tensor(filters, 1, 3, 3),
            "convolution.bias": tensor(filters),
            "norm.weight": tensor(filters),
            "norm.bias": tensor(filters),
            "head.weight": tensor(ways, filters),
            "head.bias": tensor(ways),
        }

    @staticmethod
    def logits(parameters, images):
        weight, bias, gamma, beta, head, head_bias = parameters.values()
        side = (images.shape[-1] + 1) // 2
        padded = torch.zeros(len(images), images.shape[-2] + 2, images.shape[-1] + 2, dtype=images.dtype)
        padded[:, 1:-1, 1:-1] = images[:, 0]
        maps = []
        for row in range(side):
            for column in range(side):
                patch = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                maps.append(torch.einsum("nij,fij->nf", patch, weight[:, 0]) + bias)
        maps = torch.stack(maps, dim=2)  # (images, filters, positions)
        mean = maps.mean(dim=(0, 2), keepdim=True)
        variance = ((maps - mean) ** 2).mean(dim=(0, 2), keepdim=True)
        maps = (maps - mean) / (variance + 1e-5).sqrt() * gamma[:, None] + beta[:, None]
        return maps.clamp(min=0).mean(2) @ head.T + head_bias


def cross_entropy(logits, labels):
    """Mean of -log softmax at the label, from its definition."""
    log_probabilities = logits - logits.logsumexp(1, keepdim=True)
    return -log_probabilities[torch.arange(len(labels)), labels].mean()


def adapted(parameters, images, labels, lr, steps, first_order):
    """Equation 1 of Finn et al. (2017), `steps` times, on a dictionary of tensors.

    lr: a number, or a tensor with a row for each step (the last one goes on) and a column for each tensor.
    """
    for step in range(steps):
        lrs = lr[min(step, len(lr) - 1)] if isinstance(lr, torch.Tensor) else [lr] * len(parameters)
        loss = cross_entropy(ReferenceNet.logits(parameters, images), labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=not first_order)
        parameters = {
            name: value - rate * gradient
            for (name, value), gradient, rate in zip(parameters.items(), gradients, lrs, strict=True)
        }
    return parameters


def query_loss(parameters, tasks, lr, steps, first_order=False):
    """The outer objective: mean over tasks of the query loss at the adapted parameters."""
    losses = []
    for support, labels, query, query_labels in zip(
        tasks.support, tasks.support_labels, tasks.query, tasks.query_labels, strict=True
    ):
        fast = adapted(parameters, support, labels, lr, steps, first_order)
        losses.append(cross_entropy(ReferenceNet.logits(fast, query), query_labels))
    return torch.stack(losses).mean()
