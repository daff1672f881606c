"""A GPU that is not there: tensors on ``cuda`` have shapes and no values, tensors on the CPU stay real.

Inside :func:`fake_gpu`, code with ``device="cuda"`` runs at full size on any machine. It fails as on a GPU
where tensors are on different devices. Every operation for which a CPU would wait for the GPU is counted with
the line that asks for it, and the memory of all live tensors is added up. Numbers that are read from the GPU
are zero. Weights are meta tensors (no memory, no values) until they are moved to the GPU.

Not covered: rounding, speed, compiled networks, several GPUs, and memory besides tensors (workspaces of
libraries, fragmentation, the CUDA context).
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import augbench

aten = torch.ops.aten
OURS, LIBRARIES = Path(augbench.__file__).parent, Path(torch.__file__).parents[1]
BLOCK = 512  # bytes; torch's allocator rounds up to multiples of this
FLASH_WIDTH = 256  # widest attention heads that flash attention takes
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
COPIES = {aten._to_copy.default, aten.copy_.default}
# a GPU's answer decides how large their results are, so the CPU waits for it
WAITING = {aten.nonzero.default, aten.masked_select.default, aten.equal.default, aten.bincount.default}


def is_fake(value: Any) -> bool:
    """Whether a value is a tensor on the GPU that is not there."""
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


def _is_cuda(value: Any) -> bool:
    """Whether a value is the device."""
    return isinstance(value, torch.device) and value.type == "cuda"


@cache
def _is_composite(operation: Any) -> bool:
    """Whether torch itself makes an operation of others, on all devices."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), COMPOSITE)


def _line() -> str:
    """Innermost line of this project, and the line of a library that it has called, if any."""
    frame: FrameType | None = sys._getframe(1)
    library = None
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(OURS):
            ours = f"{path.relative_to(OURS)}:{frame.f_lineno}"
            return f"{ours} ({library})" if library else ours
        outside = path.is_relative_to(LIBRARIES) and not path.is_relative_to(LIBRARIES / "torch")
        if library is None and outside:
            library = f"{path.relative_to(LIBRARIES)}:{frame.f_lineno}"
        frame = frame.f_back
    return library or "outside of the project"


class FakeGpu(TorchDispatchMode):
    """The GPU, and what was asked of it.

    Parameters
    ----------
    memory : int
        Bytes; more live tensors raise :class:`torch.OutOfMemoryError`.

    Attributes
    ----------
    blocking : Counter
        Operations for which the CPU waits, by the line that asks for them.
    operations : int
        Operations on the GPU.
    live, peak : int
        Bytes of all live tensors, now and at most since :meth:`reset_peak`. ``peak_at`` is the line of the
        peak.
    truth : bool
        Value of each bool that is read from the GPU; other numbers are zero.
    selected : int
        Number of places that :func:`torch.nonzero` finds, at most as many as there are.
    """

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory = memory
        self.blocking: Counter[str] = Counter()
        self.operations = self.live = self.peak = 0
        self.peak_at = ""
        self.truth, self.selected = True, 1
        self._fake = FakeTensorMode()
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._pinned: dict[int, weakref.ref[Any]] = {}
        self._counting: list[Counter[str]] = []

    # --- what is counted ---

    def waits(self, what: str) -> None:
        """Count an operation for which the CPU waits."""
        line = f"{_line()}: {what}"
        for counter in (self.blocking, *self._counting):
            counter[line] += 1

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Count blocking operations inside the context, by line."""
        self._counting.append(Counter())
        try:
            yield self._counting[-1]
        finally:
            self._counting.pop()

    def reset_peak(self) -> None:
        """Forget the peak; what is live now stays live."""
        self.peak, self.peak_at = self.live, ""

    def _keep(self, tensor: torch.Tensor) -> None:
        """Count a tensor's memory until no tensor uses it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key in self._storages:
            return

        def freed(_: Any) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        if self.live > self.peak:
            self.peak, self.peak_at = self.live, _line()
        if self.live > self.memory:
            raise torch.OutOfMemoryError(f"{self.live / 2**30:.1f} GiB on a GPU of {self.memory / 2**30:.1f}")

    # --- main memory ---

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mark a tensor in main memory as page-locked."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._pinned[key] = weakref.ref(storage, lambda _: self._pinned.pop(key))
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor in main memory is page-locked."""
        return not is_fake(tensor) and tensor.untyped_storage()._cdata in self._pinned

    def _in_main_memory(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is aten.is_pinned.default:
            return self.is_pinned(args[0])
        if func in (aten.pin_memory.default, aten._pin_memory.default):
            return self.pin(args[0].clone())
        if kwargs.pop("pin_memory", False):
            return self.pin(func(*args, **kwargs))
        return func(*args, **kwargs)

    # --- dispatch ---

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if not any(is_fake(leaf) or _is_cuda(leaf) for leaf in tree_leaves((args, kwargs))):
            return self._in_main_memory(func, args, kwargs)
        if _is_composite(func):  # in inference mode, it arrives whole
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        return self._on_gpu(func, args, kwargs)

    def _on_gpu(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func in COPIES and self._copies(func, args, kwargs):
            return self._copied(func, args, kwargs)
        if func is aten._local_scalar_dense.default:
            self.waits("value read")
            return self.truth if args[0].dtype == torch.bool else torch.zeros((), dtype=args[0].dtype).item()
        if func in WAITING:
            self.waits(func.overloadpacket.__name__)
        if func is aten.equal.default:
            return self.truth
        if func in (aten.nonzero.default, aten.bincount.default):
            shape = (
                [min(self.selected, args[0].numel()), args[0].dim()]
                if func is aten.nonzero.default
                else [max(1, kwargs.get("minlength", 0), *args[2:])]
            )
            kwargs = {"dtype": torch.int64, "device": args[0].fake_device}
            func, args = aten.empty.memory_format, (shape,)
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            with self:
                args = (args[0], self._places(args[1]), *args[2:])
        return self._computed(func, args, kwargs)

    def _copies(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Count a copy between main memory and the GPU; False if it stays on the GPU."""
        if func is aten._to_copy.default:
            to_gpu = is_fake(args[0]) if kwargs.get("device") is None else _is_cuda(kwargs["device"])
            source, target = args[0], None
            background = kwargs.get("non_blocking", False)
        else:
            target, source, to_gpu = args[0], args[1], is_fake(args[0])
            background = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if to_gpu == is_fake(source):
            return False
        locked = self.is_pinned(source) if to_gpu else target is None or self.is_pinned(target)
        if not (background and locked):
            pageable = background and "pageable, "
            self.waits(f"{pageable or ''}copy to the {'GPU' if to_gpu else 'CPU'}")
        return True

    def _copied(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
        """Result of a copy between main memory and the GPU."""
        if func is aten.copy_.default:
            return args[0] if is_fake(args[0]) else args[0].zero_()
        source = args[0]
        dtype = kwargs.get("dtype") or source.dtype
        layout = kwargs.get("memory_format") or torch.preserve_format
        strided = torch.empty_strided(source.shape, source.stride(), dtype=dtype, device="meta")
        like = torch.empty_like(strided, memory_format=layout)
        if is_fake(source):
            return torch.empty_strided(like.shape, like.stride(), dtype=dtype).zero_()
        empty = partial(aten.empty_strided.default, dtype=dtype, device=torch.device("cuda:0"))
        return self._computed(empty, (like.shape, like.stride()), {})

    def _places(self, places: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Tensors of places, on the GPU: from main memory they are copied, and a mask is searched."""
        found: list[torch.Tensor | None] = []
        for place in places:
            if place is not None and not is_fake(place):
                place = place.to("cuda")
            if place is None or place.dtype not in (torch.bool, torch.uint8):
                found.append(place)
            else:
                found += torch.nonzero(place).unbind(1)
        return found

    def _computed(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self.operations += 1

        def without_values(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
                return value
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")

        with self._fake:
            result = func(*tree_map(without_values, args), **tree_map(without_values, kwargs))
        for tensor in tree_leaves(result):
            if is_fake(tensor):
                self._keep(tensor)
        return tree_map(_real, result)


def _real(value: Any) -> Any:
    """Zeros in main memory for a fake tensor that says it is there; other values as they are."""
    if not isinstance(value, FakeTensor) or is_fake(value):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).zero_()


# --- attention ---


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> torch.Tensor:
    """Attention with the kernels that a GPU would take, which torch asks the driver about."""
    if not is_fake(query):
        return _attention_of_torch(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)
    width = query.shape[-1]
    scale = scale or width**-0.5
    if attn_mask is None and query.dtype != torch.float32 and width <= FLASH_WIDTH:
        padded = [F.pad(tensor, (0, -width % 8)) if width % 8 else tensor for tensor in (query, key, value)]
        made = aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, scale=scale)
        return made[0][..., :width]
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    is_learning = any(tensor.requires_grad for tensor in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, is_learning, dropout_p, is_causal, scale=scale
    )[0]


_attention_of_torch = F.scaled_dot_product_attention


# --- gradients ---


class _Backward:
    """Backward passes without torch's engine, which asks the driver for streams.

    Nodes run in the engine's order: the latest operation first, and parameters as soon as their gradients are
    there. A node's saved tensors are released when it has run.
    """

    def __init__(self) -> None:
        self.read: list[_Saved] = []
        self.engine = torch.autograd.graph._engine_run_backward

    @staticmethod
    def pack(tensor: torch.Tensor) -> _Saved:
        return _Saved(tensor.detach())  # without its history, which would keep itself alive after an error

    def unpack(self, saved: _Saved) -> torch.Tensor:
        assert saved.tensor is not None, "a second backward pass through the same operations"
        self.read.append(saved)
        return saved.tensor

    def __call__(
        self, outputs: Sequence[torch.Tensor], gradients: Any, retain: bool, *more: Any, **kw: Any
    ) -> Any:
        if not any(map(is_fake, outputs)):
            self.read.clear()
            return self.engine(outputs, gradients, retain, *more, **kw)
        create, inputs = more[:2]
        assert not (retain or create or inputs), "only plain backward passes are covered"
        self.run(outputs, gradients)

    def run(self, outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Add the gradients of all parameters that ``outputs`` were computed from."""
        due: dict[Any, dict[int, torch.Tensor]] = {}
        with torch.no_grad():
            for output, gradient in zip(outputs, gradients, strict=True):
                self._add(due, output.grad_fn, output.output_nr, gradient)
            waiting = _uses(due)
            while due:
                node = max((one for one in due if not waiting[one]), key=lambda one: one._sequence_nr())
                self._node(node, due, waiting)

    def _node(self, node: Any, due: dict[Any, dict[int, torch.Tensor]], waiting: Counter[Any]) -> None:
        given = due.pop(node)
        if hasattr(node, "variable"):
            if given:
                _accumulate(node.variable, given.pop(0))
            return
        made: list[torch.Tensor | None] = [None] * len(node.next_functions)
        if given:
            self.read.clear()
            result = node(*[given.pop(number, None) for number in range(len(node._input_metadata))])
            made = list(result) if isinstance(result, tuple) else [result]
            del result
            for saved in self.read:
                saved.tensor = None
        for place, (following, number) in enumerate(node.next_functions):
            gradient, made[place] = made[place], None
            if following is not None:
                waiting[following] -= 1
                due.setdefault(following, {})
                if gradient is not None:
                    self._add(due, following, number, gradient)

    @staticmethod
    def _add(due: dict[Any, dict[int, torch.Tensor]], node: Any, number: int, gradient: torch.Tensor) -> None:
        given, wanted = due.setdefault(node, {}), node._input_metadata[number]
        if gradient.shape != wanted.shape:  # of a tensor that was broadcast
            gradient = gradient.sum_to_size(wanted.shape)
        gradient = gradient.to(wanted.dtype)
        given[number] = given[number] + gradient if number in given else gradient


@dataclass
class _Saved:
    """Tensor that an operation saved for its backward pass; None once that has run."""

    tensor: torch.Tensor | None


def _uses(roots: Iterable[Any]) -> Counter[Any]:
    """Number of nodes that give gradients to each node below ``roots``."""
    uses: Counter[Any] = Counter()
    seen, pending = set(roots), list(roots)
    while pending:
        for following, _ in pending.pop().next_functions:
            if following is not None:
                uses[following] += 1
                if following not in seen:
                    seen.add(following)
                    pending.append(following)
    return uses


def _accumulate(variable: torch.Tensor, gradient: torch.Tensor) -> None:
    if variable.grad is not None:
        variable.grad += gradient
    elif gradient.stride() == variable.stride():
        variable.grad = gradient.detach()
    else:
        variable.grad = torch.empty_like(variable).copy_(gradient)


# --- torch's interface ---


def _swap(first: torch.Tensor, second: torch.Tensor) -> None:
    """Swap two tensors, even if other objects refer to them; networks do this when they change layout."""
    if not is_fake(second):
        _swap_of_torch(first, second)
        return
    first.__dict__, second.__dict__ = second.__dict__, first.__dict__
    torch._C._swap_tensor_impl(first, second)


_swap_of_torch = torch.utils.swap_tensors


class _Stream:
    """Stream or event; everything that was asked for has already happened."""

    def __init__(self, gpu: FakeGpu, *_: Any, **__: Any) -> None:
        self.gpu = gpu

    def synchronize(self) -> None:
        self.gpu.waits("synchronize")

    def record_event(self, event: _Stream | None = None) -> _Stream:
        return event or _Stream(self.gpu)

    def query(self) -> bool:
        return True

    def record(self, *_: Any) -> None: ...

    wait = wait_event = wait_stream = record


def _at_once(
    _: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Future[Any]:
    """``ThreadPoolExecutor.submit`` without threads: fake tensors are not made for several at a time."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(*args, **kwargs))
    except Exception as error:
        future.set_exception(error)
    return future


@contextmanager
def fake_gpu(
    memory: float = 1 << 20, capability: tuple[int, int] = (9, 0), name: str = "NVIDIA Imaginary"
) -> Iterator[FakeGpu]:
    """Context with one GPU of ``memory`` GiB; see the module."""
    gpu, backward = FakeGpu(int(memory * 2**30)), _Backward()
    properties = SimpleNamespace(
        name=name,
        total_memory=gpu.memory,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=132,
    )
    convolution = torch._C._select_conv_backend

    def select_convolution(*args: Any, **kwargs: Any) -> Any:
        return torch._C._ConvBackend.Cudnn if is_fake(args[0]) else convolution(*args, **kwargs)

    answers: dict[str, Any] = {
        "init": None,
        "_lazy_init": None,
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_name": name,
        "get_device_capability": capability,
        "get_device_properties": properties,
        "get_arch_list": ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
        "is_bf16_supported": capability[0] >= 8,
        "is_current_stream_capturing": False,
        "empty_cache": None,
        "manual_seed": None,
        "manual_seed_all": None,
    }
    changes: list[tuple[Any, str, Any]] = [
        *((torch.cuda, key, lambda *_, answer=answer, **__: answer) for key, answer in answers.items()),
        (torch.cuda, "mem_get_info", lambda *_: (gpu.memory - gpu.live, gpu.memory)),
        (torch.cuda, "synchronize", lambda *_: gpu.waits("synchronize")),
        (torch.cuda, "stream", lambda *_: nullcontext()),
        *((torch.cuda, key, partial(_Stream, gpu)) for key in ("Stream", "Event", "current_stream")),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch._C, "_select_conv_backend", select_convolution),
        (torch.autograd, "_engine_run_backward", backward),
        (torch.autograd.graph, "_engine_run_backward", backward),
        (torch.utils, "swap_tensors", _swap),
        (F, "scaled_dot_product_attention", _attention),
        (ThreadPoolExecutor, "submit", _at_once),
    ]
    torch._C._ensureCUDADeviceGuardSet()
    lifting = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for owner, key, changed in changes:
            stack.enter_context(mock.patch.object(owner, key, changed))
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifting)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(backward.pack, backward.unpack))
        yield stack.enter_context(gpu)
