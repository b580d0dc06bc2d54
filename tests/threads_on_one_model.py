"""Run by a test in a process of its own: many threads, one model object, different layers, targets, methods, modes.

    python threads_on_one_model.py THREADS ROUNDS

Every map must have the bits that one thread alone gets, some calls failing meanwhile, some in training mode.
"""

import sys
import threading

import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import CamlucidaError

torch.set_num_threads(1)
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv2(self.bn(self.conv1(x)).relu()))
        return self.fc(self.drop(x.amax((2, 3)).tanh()))


Job = tuple[int, str | None, str, int]
PICTURES = [torch.randn(1 + i % 2, 3, 12 + 4 * (i % 3), 16) for i in range(12)]
WAYS = (("conv2", "gradcam"), ("bn", "hirescam"), ("relu", "layercam"), (None, "gradcampp"))
JOBS: list[Job] = [(i, layer, method, t) for i in range(len(PICTURES)) for layer, method in WAYS for t in (1, 4)]


def answer(net: Net, job: Job) -> Tensor:
    i, layer, method, target = job
    return cl.explain(net, PICTURES[i], layer=layer, method=method, target=target).map


def fails_as_it_should(net: Net) -> bool:
    try:
        answer(net, (0, "conv2", "gradcam", 9999))
    except CamlucidaError as problem:
        return "class 9999" in str(problem)
    return False


def work(net: Net, truth: list[Tensor], order: list[int], wrong: list[int], errors: list[Exception]) -> None:
    try:
        for at in order:
            if not torch.equal(answer(net, JOBS[at]), truth[at]):
                wrong.append(at)
            if at % 7 == 0 and not fails_as_it_should(net):
                wrong.append(-1)
    except Exception as problem:
        errors.append(problem)


def main(threads: int, rounds: int) -> None:
    net = Net().train()  # in training mode: every thread must see it evaluate, and nobody must switch it off too early
    truth = [answer(net, job) for job in JOBS]
    distinct = {t.numpy().tobytes() for t in truth}
    assert len(distinct) > len(JOBS) * 0.7, "references too alike: the comparison would prove nothing"
    wrong: list[int] = []
    errors: list[Exception] = []
    orders = [[(n + 3 * i) % len(JOBS) for i in range(rounds * len(JOBS) // 3)] for n in range(threads)]
    crew = [threading.Thread(target=work, args=(net, truth, order, wrong, errors)) for order in orders]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    left = [m for m in net.modules() if m._forward_hooks or not m.training]
    print(f"{sum(map(len, orders))} maps in {threads} threads: {len(wrong)} wrong, {len(errors)} errors")
    print(*map(repr, errors[:3]), sep="\n")
    sys.exit(bool(wrong or errors or left))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
