"""The networks of the benchmarks in PyTorch, and what their training minimises.

Uses PyTorch alone, from an environment of its own.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional

ATTRIBUTES = (4, *[2] * 9, 9, 10)
IDENTITIES = 751


class AttributesCnn(nn.Module):
    """`market_jax.models.attributes_cnn`."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, (3, 32, 128, 256)))
        sizes = ((3, 32, 7), (32, 128, 5), (128, 256, 3), (256, 128, 3))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, padding=k // 2) for i, o, k in sizes)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(1024, 64), nn.LeakyReLU(), nn.Dropout(0.5), nn.Linear(64, k))
            for k in ATTRIBUTES
        )

    def forward(self, x):
        def unit(i, x):
            return functional.leaky_relu(self.convs[i](self.norms[i](x)))

        x = functional.max_pool2d(unit(0, x), 2)
        x = functional.max_pool2d(unit(1, x), 2)
        x = x + unit(3, unit(2, x))
        x = functional.avg_pool2d(x, (4, 16)).flatten(1)
        return [head(x) for head in self.heads]


class Autoencoder(nn.Module):
    """`market_jax.models.autoencoder`."""

    def __init__(self, widths=(64, 128, 256)):
        super().__init__()
        inputs = (3, *widths[:-1])

        def block(a, b):
            return (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

        def unblock(a, b):
            return (nn.ReLU(), nn.BatchNorm2d(a), nn.ConvTranspose2d(a, b, 3, padding=1))

        pairs = list(zip(inputs, widths, strict=True))
        self.down = nn.ModuleList(nn.Sequential(*block(a, b), *block(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(
            nn.Sequential(*unblock(b, b), *unblock(b, a)) for a, b in pairs[::-1]
        )

    def forward(self, x):
        switches = []
        for down in self.down:
            x, indices = functional.max_pool2d(down(x), 2, return_indices=True)
            switches.append(indices)
        for up in self.up:
            x = up(functional.max_unpool2d(x, switches.pop(), 2))
        return torch.sigmoid(x)


class Vae(nn.Module):
    """`market_jax.models.vae`."""

    def __init__(self, widths=(32, 64, 128, 256), latent=128, cells=16):
        super().__init__()

        def unit(conv, width):
            return nn.Sequential(conv, nn.BatchNorm2d(width), nn.LeakyReLU())

        self.encoder = nn.Sequential(
            *(
                unit(nn.Conv2d(a, b, 3, 2, 1), b)
                for a, b in zip((3, *widths[:-1]), widths, strict=True)
            )
        )
        size = widths[-1] * cells
        self.mean, self.logvar = nn.Linear(size, latent), nn.Linear(size, latent)
        self.decode = nn.Linear(latent, size)
        back = (*widths[::-1], widths[0])
        self.decoder = nn.Sequential(
            *(
                unit(nn.ConvTranspose2d(a, b, 3, 2, 1, output_padding=1), b)
                for a, b in itertools.pairwise(back)
            )
        )
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x):
        x = self.encoder(x)
        shape, x = x.shape, x.flatten(1)
        mean, logvar = self.mean(x).float(), self.logvar(x).float()
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        x = self.decode(z).view(shape).contiguous(memory_format=torch.channels_last)
        return self.last(self.decoder(x)), mean, logvar


class ResidualBlock(nn.Module):
    """A block of `market_jax.models.backbones.resnet`."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        widths, kernels, strides = [width] * 2, [3, 3], [stride, 1]
        if bottleneck:
            widths, kernels, strides = [width, width, 4 * width], [1, 3, 1], [1, stride, 1]
        layers = []
        for a, b, k, s in zip([inputs, *widths[:-1]], widths, kernels, strides, strict=True):
            layers += [nn.Conv2d(a, b, k, s, k // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.inner, self.outputs = nn.Sequential(*layers[:-1]), widths[-1]
        self.around = nn.Identity()
        if stride > 1 or inputs != self.outputs:
            conv = nn.Conv2d(inputs, self.outputs, 1, stride, bias=False)
            self.around = nn.Sequential(conv, nn.BatchNorm2d(self.outputs))

    def forward(self, x):
        return functional.relu(self.inner(x) + self.around(x))


def resnet(depth):
    """`market_jax.models.backbones.resnet` with a linear head."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for i in range(blocks):
            stride = 2 if i == 0 and stage else 1
            block = ResidualBlock(width, 64 * 2**stage, stride, depth == 50)
            layers.append(block)
            width = block.outputs
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, IDENTITIES)
    )


class InvertedBlock(nn.Module):
    """A block of `market_jax.models.backbones.efficientnet_lite`."""

    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        layers = unit(inputs, inner, 1) if expansion > 1 else []
        layers += [*unit(inner, inner, kernel, stride, inner), *unit(inner, outputs, 1)[:-1]]
        self.inner, self.around = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.inner(x) if self.around else self.inner(x)


def unit(inputs, outputs, kernel, stride=1, groups=1):
    """Convolution, BatchNorm and ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU6()]


def efficientnet_lite():
    """`market_jax.models.backbones.efficientnet_lite` with a linear head."""
    stages = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    layers, inputs = unit(3, 32, 3, 2), 32
    for blocks, kernel, stride, expansion, width in stages:
        for i in range(blocks):
            layers.append(InvertedBlock(inputs, width, kernel, 1 if i else stride, expansion))
            inputs = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, IDENTITIES)]
    return nn.Sequential(*layers, *unit(320, 1280, 1), *head)


class Gate(nn.Module):
    """A block's gate of `market_jax.models.backbones.osnet`."""

    def __init__(self, width):
        super().__init__()
        inner = width // 16
        layers = (nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1), nn.Sigmoid())
        self.inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers)

    def forward(self, x):
        return x * self.inner(x)


def normed(inputs, outputs, kernel=1, stride=1):
    """Convolution and BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def light(width):
    """A 1x1 convolution, and a 3x3 one of each channel alone."""
    inner = nn.Conv2d(width, width, 1, bias=False)
    outer = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    return [inner, outer, nn.BatchNorm2d(width), nn.ReLU()]


class StreamsBlock(nn.Module):
    """A block of `market_jax.models.backbones.osnet`."""

    def __init__(self, inputs, outputs):
        super().__init__()
        width = outputs // 4
        self.first = nn.Sequential(*normed(inputs, width), nn.ReLU())
        self.streams = nn.ModuleList(
            nn.Sequential(*(layer for _ in range(depth) for layer in light(width)))
            for depth in range(1, 5)
        )
        self.gate, self.last = Gate(width), nn.Sequential(*normed(width, outputs))
        around = normed(inputs, outputs) if inputs != outputs else [nn.Identity()]
        self.around = nn.Sequential(*around)

    def forward(self, x):
        y = self.first(x)
        y = sum(self.gate(stream(y)) for stream in self.streams)
        return functional.relu(self.last(y) + self.around(x))


def osnet(widths=(64, 256, 384, 512), features=512):
    """`market_jax.models.backbones.osnet` with a linear head."""
    layers = [*normed(3, widths[0], 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [StreamsBlock(inputs, outputs), StreamsBlock(outputs, outputs)]
        if outputs != widths[-1]:
            layers += [*normed(outputs, outputs), nn.ReLU(), nn.AvgPool2d(2)]
    layers += [*normed(outputs, outputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    dense = [nn.Linear(outputs, features), nn.BatchNorm1d(features), nn.ReLU()]
    return nn.Sequential(*layers, *dense, nn.Linear(features, IDENTITIES))


class TransformerBlock(nn.Module):
    """A block of `market_jax.models.transformer`, as timm has it."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1)
        y = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(y.transpose(1, 2).reshape(n, t, d))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """`market_jax.models.backbones.vit` with a linear head, for pictures of 256x128."""

    def __init__(self, width=384, heads=6, depth=12, patch=16, count=128):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + count, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, IDENTITIES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def attribute_loss(outputs, x, labels):
    """Mean of the cross-entropies."""
    losses = [functional.cross_entropy(o.float(), labels % o.shape[1]) for o in outputs]
    return sum(losses) / len(losses)


def identity_loss(outputs, x, labels):
    """Cross-entropy."""
    return functional.cross_entropy(outputs.float(), labels)


def squared_error(outputs, x, labels):
    """Mean over pixels."""
    return functional.mse_loss(outputs.float(), x)


def elbo(outputs, x, labels):
    """Sum of squares and KL divergence, a mean over images."""
    y, mean, logvar = outputs
    kl = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum()
    return (functional.mse_loss(y.float(), x, reduction="sum") + kl) / len(x)


NETWORKS = {
    "attributes_cnn": (AttributesCnn, attribute_loss),
    "autoencoder": (Autoencoder, squared_error),
    "vae": (Vae, elbo),
    "resnet34": (lambda: resnet(34), identity_loss),
    "resnet50": (lambda: resnet(50), identity_loss),
    "efficientnet_lite": (efficientnet_lite, identity_loss),
    "osnet": (osnet, identity_loss),
    "vit_small": (Vit, identity_loss),
}
