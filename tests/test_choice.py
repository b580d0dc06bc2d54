"""Which layer is chosen where blocks, attention and branches make it less than plain."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import camlucida as cl
from camlucida.core.capture import Inputs
from camlucida.core.choice import Blocks
from camlucida.core.layers import survey


class Attention(nn.Module):
    """Queries and keys are normalised by modules of their own, as in many recent transformers."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.qkv, self.q_norm, self.k_norm = nn.Linear(dim, 3 * dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)


class Block(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), Attention(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Twin(Block):
    """Attention and what follows it beside each other: the class token reads the first norm's tokens only in part."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__(dim)
        self.key = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.norm1(x), self.key(self.norm2(x))
        return x + F.scaled_dot_product_attention(q, k, q)


class Transformer(nn.Module):
    def __init__(self, block: Callable[[], nn.Module], prefix: int, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.prefix, self.read = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, prefix, 8)), read
        self.blocks = nn.Sequential(*(block() for _ in range(3)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.prefix, self.embed(x).flatten(2).transpose(1, 2)], 1)
        return self.head(self.read(self.blocks(tokens)))


def chosen(net: nn.Module) -> str:
    x = torch.randn(1, 3, 16, 24)
    e = cl.explain(net.eval(), x, method="hirescam")
    quick, whole = (survey(net, Inputs((x,)), again=True, complete=c) for c in (False, True))
    assert quick.choice == whole.choice and quick.whole == whole.whole
    assert e.map.isfinite().all() and e.map.std() > 0 and tuple(e.map.shape[1:]) in ((4, 6), (8, 12), (16, 24))
    return e.layer


def test_the_block_whose_class_token_is_read_is_shown_at_the_norm_that_all_of_it_goes_through() -> None:
    assert chosen(Transformer(Block, 1, lambda t: t[:, 0])) == "blocks.2.norm1"


def test_tokens_that_are_all_read_are_shown_where_they_are_read() -> None:
    assert chosen(Transformer(Block, 0, lambda t: t.mean(1))) == "blocks"


def test_a_part_of_what_the_class_token_reads_is_not_taken_for_all_of_it() -> None:
    """Neither norm of the last block carries everything: the block before it is the last that does."""
    assert chosen(Transformer(Twin, 1, lambda t: t[:, 0])) == "blocks.1"


class Pool(nn.Module):
    """An attention pool: one query of its own, keys and values by one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.kv = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).reshape(len(x), -1, 2, 8).unbind(2)
        return F.scaled_dot_product_attention(self.query, k, v)[:, 0]


def test_an_attention_pool_is_shown_at_what_it_reads() -> None:
    net = Transformer(Block, 0, lambda t: t)
    net.head = nn.Sequential(Pool(), nn.Linear(8, 5))  # type: ignore[assignment]
    assert chosen(net) == "blocks"


class Branches(nn.Module):
    """Two branches that only meet in the score; the trunk before them is one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 5, 3, 2, 1), nn.Conv2d(4, 5, 5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.left(x).mean((2, 3)) + self.right(x).relu().mean((2, 3))


def test_branches_are_shown_where_they_part() -> None:
    assert chosen(Branches()) == "stem"


class Positions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linspace(0, 1, 24, device=x.device).expand(1, 4, 16, 24)


class Placed(Branches):
    """A table of positions is no second beginning of the evidence."""

    def __init__(self, positions: nn.Module) -> None:
        super().__init__()
        self.positions, self.mixed = positions, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.mixed(x + self.positions(x))
        return (self.left(x) * self.left(x + self.positions(x))).mean((2, 3))


def test_a_table_of_positions_hides_no_layer() -> None:
    seen = survey(Placed(Positions()), Inputs((torch.randn(1, 3, 16, 24),)))
    assert seen.whole and [p.name for p in seen.places] == ["stem", "mixed"]


def test_what_is_kept_from_training_but_sees_the_picture_is_a_beginning_of_its_own() -> None:
    class Kept(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().sin()

    seen = survey(Placed(Kept()), Inputs((torch.randn(1, 3, 16, 24),)))
    assert not seen.whole


class Apart(Branches):
    """Two branches that never were one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x[:, :1].expand(-1, 4, -1, -1)).mean((2, 3)) + self.right(self.stem(x)).mean((2, 3))


def test_a_net_that_never_was_one_is_shown_at_a_branch_and_says_so() -> None:
    seen = survey(Apart().eval(), Inputs((torch.randn(1, 3, 16, 24),)))
    assert seen.choice.name == "right" and not seen.whole
    assert survey(Branches().eval(), Inputs((torch.randn(1, 3, 16, 24),))).whole
    found, named, early = cl.sweep(Apart().eval(), torch.randn(1, 3, 16, 24), layers=[None, "left", -2])
    assert found.layer == "right" and [n for n in found.facts.notes if "one branch of several" in n]
    whole = cl.explain(Branches().eval(), torch.randn(1, 3, 16, 24))
    assert not any("one branch of several" in n for e in (named, early, whole) for n in e.facts.notes)


class Gated(nn.Module):
    """A gate beside the trunk runs after all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.gate, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return self.head((x * self.gate(x).sigmoid()).mean((2, 3)))


def test_a_gate_is_no_map_of_the_evidence() -> None:
    assert chosen(Gated()) == "trunk"


@pytest.mark.parametrize(
    "name, block",
    [("blocks.1.attn.qkv", "blocks.1"), ("blocks.1.norm1", "blocks.1"), ("blocks.1", None), ("head", None)],
)
def test_a_block_is_one_of_a_row_of_its_kind(name: str, block: str | None) -> None:
    net = Transformer(Block, 1, lambda t: t[:, 0])
    assert Blocks(dict(net.named_modules())).around(name) == block


def test_containers_of_other_things_are_no_row_of_blocks() -> None:
    rows = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()), nn.Sequential(nn.ReLU()))
    blocks = Blocks(dict(rows.named_modules()))
    assert [blocks.around(f"{i}.0") for i in range(3)] == ["0", None, "2"]


class Several(nn.Module):
    """Gives its tokens and what it pooled of them, as the backbones of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Alone()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (made,) = self.encoder(x)
        return made, made.mean((2, 3))


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.conv(x).relu(),)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Several(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[1])


def test_of_two_modules_that_give_one_tensor_the_one_that_gives_nothing_else_is_named() -> None:
    assert chosen(Backbone()) == "backbone.encoder"
