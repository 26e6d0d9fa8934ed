"""Which operators may raise because of the elements they are given: they run even if nobody wants what they return.

Shapes, dtypes and devices are known, or guarded, when a function is compiled; elements are not. An operator that no
table here names may check them (indices out of range, matrices that are singular, probabilities above one, ...).
"""

from __future__ import annotations

from typing import Any

import torch


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Never raise because of elements; besides those that have the tag of operators that work element by element.
_TOTAL = _words(
    # new tensors
    "arange complex empty empty_like empty_permuted empty_strided eye full full_like lift lift_fresh "
    "lift_fresh_copy linspace logspace new_empty new_empty_strided new_full new_ones new_zeros ones ones_like "
    "scalar_tensor tril_indices triu_indices zeros zeros_like "
    # views, copies, and what moves elements by place
    "H T adjoint alias as_strided atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to cat chunk clone "
    "column_stack concat concatenate conj constant_pad_nd contiguous copy detach diag diag_embed diagonal dsplit "
    "dstack expand expand_as fill flatten flip fliplr flipud hsplit hstack imag mH mT masked_fill meshgrid moveaxis "
    "movedim narrow numpy_T pad permute pixel_shuffle pixel_unshuffle ravel real reflection_pad1d reflection_pad2d "
    "repeat replication_pad1d replication_pad2d reshape reshape_as resolve_conj resolve_neg roll rot90 row_stack "
    "select select_scatter slice slice_scatter split split_with_sizes squeeze stack swapaxes swapdims t tile to "
    "_to_copy transpose tril triu type_as unbind unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes "
    "_unsafe_view unsqueeze view view_as view_as_complex view_as_real vsplit vstack where zero "
    # sizes
    "dim is_complex is_floating_point is_same_size numel size stride sym_numel sym_size sym_storage_offset "
    "sym_stride "
    # element by element, without the tag
    "absolute clamp dropout feature_dropout alpha_dropout native_dropout glu greater greater_equal isclose isreal "
    "less less_equal log_sigmoid log_sigmoid_forward multiply nan_to_num negative not_equal prelu _prelu_kernel "
    "subtract "
    # reductions and sums of products
    "addbmm addmm addmv addr all amax amin aminmax any argmax argmin argsort avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d baddbmm bmm cdist conv1d conv2d conv3d conv_transpose1d "
    "conv_transpose2d conv_transpose3d convolution cosine_similarity count_nonzero cov cross cummax cummin cumprod "
    "cumsum diff dot einsum frobenius_norm huber_loss inner kron l1_loss linalg_cross linalg_vector_norm linear "
    "logcumsumexp logsumexp matmul max max_pool1d max_pool2d max_pool3d mean median min mm mse_loss mv nanmean "
    "nanmedian nansum norm outer pairwise_distance prod scaled_dot_product_attention smooth_l1_loss sort std "
    "std_mean sum sum_to_size tensordot topk trace trapezoid var var_mean vdot "
    # normalisation
    "batch_norm group_norm instance_norm layer_norm log_softmax _log_softmax native_batch_norm native_group_norm "
    "native_layer_norm rms_norm softmax _softmax softmin"
)
#: Raise when an integer is divided by zero, as does `div` with a rounding mode, and nothing else.
_DIVISIONS = _words("div divide floor_divide fmod remainder")


def total(overload: Any) -> bool:
    """Whether an operator never raises because of the elements it is given, unless it divides integers."""
    space, _, name = overload._schema.name.partition("::")
    if space != "aten":
        return False
    name = name.removesuffix("_")
    return torch.Tag.pointwise in overload.tags or name in _TOTAL or name in _DIVISIONS


def divides(overload: Any) -> bool:
    """Whether an operator raises where an integer is divided by zero, if its results are integers."""
    return overload._schema.name.partition("::")[2].removesuffix("_") in _DIVISIONS
