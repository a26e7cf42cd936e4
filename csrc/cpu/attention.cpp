// Attention on a CPU, packed and padded. The host checks everything a kernel addresses by, cuts the batch into items of
// one (sequence, head) each, or fewer queries where heads are too few for the threads, and hands them out longest
// first.
#include "attention.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "host.h"

namespace bertfast {

std::vector<AttentionItem> items_of(const std::vector<Sequence>& sequences, int64_t heads, bool cut) {
  const int64_t pieces =
      cut ? std::max<int64_t>(
                1, 4 * at::get_num_threads() / std::max<int64_t>(1, heads * static_cast<int64_t>(sequences.size())))
          : 1;
  std::vector<AttentionItem> items;
  for (size_t b = 0; b < sequences.size(); ++b) {
    const Sequence& s = sequences[b];
    if (s.length == 0) continue;
    const int64_t step = std::max<int64_t>(48, (s.length + pieces - 1) / pieces);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t q = 0; q < s.length; q += cut ? step : s.length) {
        const int64_t end = cut ? std::min(s.length, q + step) : s.length;
        items.push_back({s.first_token, s.length, q, end, static_cast<int64_t>(b), h, s.lse_base + h * s.lse_head});
      }
    }
  }
  std::stable_sort(items.begin(), items.end(), [](const AttentionItem& a, const AttentionItem& b) {
    return a.length * (a.query_end - a.query_begin) > b.length * (b.query_end - b.query_begin);
  });
  return items;
}

std::vector<Sequence> packed_sequences(const at::Tensor& cu_seqlens, int64_t tokens, int64_t max_seqlen,
                                       int64_t& longest) {
  TORCH_CHECK_VALUE(cu_seqlens.device().is_cpu() && cu_seqlens.dim() == 1 && cu_seqlens.numel() > 0 &&
                        cu_seqlens.scalar_type() == at::kInt,
                    "attention: cu_seqlens must be int32 [B + 1] on a CPU, got ", cu_seqlens.scalar_type(), " ",
                    cu_seqlens.sizes());
  const at::Tensor bounds = cu_seqlens.contiguous();
  const int32_t* at = bounds.const_data_ptr<int32_t>();
  const int64_t batch = bounds.numel() - 1;
  TORCH_CHECK_VALUE(at[0] == 0 && at[batch] == tokens, "attention: cu_seqlens must rise from 0 to the ", tokens,
                    " tokens of qkv, got ", at[0], " ... ", at[batch]);
  std::vector<Sequence> sequences;
  longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(at[b] <= at[b + 1], "attention: cu_seqlens must rise from 0 to the ", tokens,
                      " tokens of qkv, but falls from ", at[b], " to ", at[b + 1], " at sequence ", b);
    const int64_t length = static_cast<int64_t>(at[b + 1]) - at[b];
    longest = std::max(longest, length);
    sequences.push_back({at[b], length, at[b], tokens});
  }
  TORCH_CHECK_VALUE(longest <= max_seqlen, "attention: max_seqlen is ", max_seqlen, " but a sequence has ", longest,
                    " tokens");
  return sequences;
}

namespace {

// Threads take the next item as they become free; items write disjoint memory, so the order does not show in the
// result.
template <class Body>
void run(const std::vector<AttentionItem>& items, int64_t floats, Body&& body) {
  if (items.empty()) return;
  std::atomic<size_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), static_cast<int64_t>(items.size()));
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    const at::Tensor scratch = at::empty({floats}, at::kFloat);
    for (int64_t worker = first; worker < last; ++worker) {
      for (size_t i = next.fetch_add(1); i < items.size(); i = next.fetch_add(1)) {
        body(items[i], scratch.mutable_data_ptr<float>());
      }
    }
  });
}

using OptionalTensor = std::optional<at::Tensor>;
using Pair = std::tuple<at::Tensor, at::Tensor>;

bool takes(const at::Tensor& qkv, int64_t size) { return is_kernel_dtype(qkv) && size > 0 && size <= kLargestHead; }

AttentionProblem describe(const at::Tensor& qkv, int64_t heads, int64_t size, double scale, double dropout_p,
                          const OptionalTensor& rng) {
  AttentionProblem p{};
  p.bfloat16 = qkv.scalar_type() == at::kBFloat16;
  p.pairs = multiplies_pairs();
  p.heads = heads;
  p.size = size;
  p.qkv = qkv.const_data_ptr();
  p.scale = static_cast<float>(scale);
  p.inverse_keep = 1.0;
  if (dropout_p > 0.0) {
    const DropoutState state = dropout_state(rng);
    p.key0 = state.key0;
    p.key1 = state.key1;
    p.offset = state.offset;
    p.threshold = threshold_attention(dropout_p);
    p.inverse_keep = 256.0 / (256.0 - p.threshold);
  }
  return p;
}

void check_packed(const at::Tensor& qkv) {
  TORCH_CHECK_VALUE(qkv.dim() == 4 && qkv.size(1) == 3, "attention: qkv must be [T, 3, H, D], got ", qkv.sizes());
}

std::vector<Sequence> padded_sequences(const at::Tensor& qkv) {
  TORCH_CHECK_VALUE(qkv.dim() == 5 && qkv.size(2) == 3, "attention_padded: qkv must be [B, S, 3, H, D], got ",
                    qkv.sizes());
  const int64_t length = qkv.size(1), heads = qkv.size(3);
  std::vector<Sequence> sequences;
  for (int64_t b = 0; b < qkv.size(0); ++b) sequences.push_back({b * length, length, b * heads * length, length});
  return sequences;
}

// The mask as floats to add, its broadcast dimensions, expanded ones too, at size 1; False and the bottom of a dtype's
// range become -infinity.
at::Tensor additive(const OptionalTensor& mask_in, const at::Tensor& qkv) {
  if (!mask_in) return {};
  OptionalTensor mask = mask_in;
  for (int64_t i = 0; i < mask->dim(); ++i) {
    if (mask->stride(i) == 0 && mask->size(i) > 1) mask = mask->narrow(i, 0, 1);
  }
  TORCH_CHECK_VALUE(mask->dim() <= 4, "attention_padded: mask must broadcast to [B, H, S, S], got ", mask->sizes());
  const double bottom = -std::numeric_limits<double>::infinity();
  at::Tensor added;
  if (mask->scalar_type() == at::kBool) {
    added = at::zeros(mask->sizes(), at::kFloat).masked_fill(mask->logical_not(), bottom);
  } else {
    TORCH_CHECK_VALUE(mask->is_floating_point(), "attention_padded: mask must be bool or floating point, got ",
                      mask->scalar_type());
    const double half = mask->scalar_type() == at::kHalf ? -65504.0 / 2
                        : mask->scalar_type() == at::kDouble
                            ? -std::numeric_limits<double>::max() / 2
                            : -static_cast<double>(std::numeric_limits<float>::max()) / 2;
    added = mask->to(at::kFloat).masked_fill(mask->le(half), bottom);
  }
  while (added.dim() < 4) added = added.unsqueeze(0);
  const int64_t target[4] = {qkv.size(0), qkv.size(3), qkv.size(1), qkv.size(1)};
  for (int i = 0; i < 4; ++i) {
    TORCH_CHECK_VALUE(added.size(i) == 1 || added.size(i) == target[i], "attention_padded: mask of shape ",
                      mask->sizes(), " does not broadcast to [", target[0], ", ", target[1], ", ", target[2], ", ",
                      target[3], "]");
  }
  return added.contiguous();
}

void set_mask(AttentionProblem& p, const at::Tensor& mask) {
  if (!mask.defined()) return;
  auto stride = [&](int i) { return mask.size(i) == 1 ? 0 : mask.stride(i); };
  p.mask = mask.const_data_ptr<float>();
  p.mask_batch = stride(0);
  p.mask_head = stride(1);
  p.mask_query = stride(2);
  p.mask_key = stride(3);
}

void check_gradient(const at::Tensor& dout, const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse) {
  const int64_t rows = qkv.numel() / (3 * qkv.size(-1));
  TORCH_CHECK_VALUE(dout.sizes() == out.sizes() && out.numel() * 3 == qkv.numel() &&
                        out.scalar_type() == qkv.scalar_type() && lse.scalar_type() == at::kFloat &&
                        lse.numel() == rows,
                    "attention: dout, out and lse must come from the forward call on this qkv");
}

Pair run_forward(const at::Tensor& qkv, AttentionProblem p, const std::vector<Sequence>& sequences, int64_t longest,
                 at::Tensor out, at::Tensor lse) {
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr<float>();
  run_attention(p, items_of(sequences, p.heads, true), longest);
  return {out, lse};
}

at::Tensor run_backward(const at::Tensor& qkv, AttentionProblem p, const std::vector<Sequence>& sequences,
                        int64_t longest, const at::Tensor& dout_in, const at::Tensor& out_in) {
  const at::Tensor dout = dout_in.to(qkv.scalar_type()).contiguous(), out = out_in.contiguous();
  at::Tensor dqkv = at::empty(qkv.sizes(), qkv.options());
  // out is only read; the struct is shared with forward, which writes it.
  p.out = const_cast<void*>(out.const_data_ptr());
  p.dout = dout.const_data_ptr();
  p.dqkv = dqkv.mutable_data_ptr();
  const AttentionKernels& kernels = attention_kernels();
  run(items_of(sequences, p.heads, false), kernels.backward_scratch(longest, p.size),
      [&](const AttentionItem& item, float* scratch) { kernels.backward(p, item, scratch); });
  return dqkv;
}

Pair forward(const at::Tensor& qkv_in, const at::Tensor& cu_seqlens, int64_t max_seqlen, double scale, double dropout_p,
             const OptionalTensor& rng) {
  if (!takes(qkv_in, qkv_in.size(-1))) {
    return call_reference<Pair(const at::Tensor&, const at::Tensor&, c10::SymInt, double, double,
                               const OptionalTensor&)>("bertfast_reference::attention_fwd", qkv_in, cu_seqlens,
                                                       max_seqlen, scale, dropout_p, rng);
  }
  check_packed(qkv_in);
  int64_t longest = 0;
  const std::vector<Sequence> sequences = packed_sequences(cu_seqlens, qkv_in.size(0), max_seqlen, longest);
  const at::Tensor qkv = qkv_in.contiguous();
  const int64_t tokens = qkv.size(0), heads = qkv.size(2), size = qkv.size(3);
  return run_forward(qkv, describe(qkv, heads, size, scale, dropout_p, rng), sequences, longest,
                     at::empty({tokens, heads, size}, qkv.options()),
                     at::empty({heads, tokens}, qkv.options().dtype(at::kFloat)));
}

at::Tensor backward(const at::Tensor& dout, const at::Tensor& qkv_in, const at::Tensor& out, const at::Tensor& lse,
                    const at::Tensor& cu_seqlens, int64_t max_seqlen, double scale, double dropout_p,
                    const OptionalTensor& rng) {
  if (!takes(qkv_in, qkv_in.size(-1))) {
    return call_reference<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                     const at::Tensor&, c10::SymInt, double, double, const OptionalTensor&)>(
        "bertfast_reference::attention_bwd", dout, qkv_in, out, lse, cu_seqlens, max_seqlen, scale, dropout_p, rng);
  }
  check_packed(qkv_in);
  int64_t longest = 0;
  const std::vector<Sequence> sequences = packed_sequences(cu_seqlens, qkv_in.size(0), max_seqlen, longest);
  const at::Tensor qkv = qkv_in.contiguous();
  check_gradient(dout, qkv, out, lse);
  return run_backward(qkv, describe(qkv, qkv.size(2), qkv.size(3), scale, dropout_p, rng), sequences, longest, dout,
                      out);
}

Pair padded_forward(const at::Tensor& qkv_in, const OptionalTensor& mask, double scale, double dropout_p,
                    const OptionalTensor& rng) {
  if (!takes(qkv_in, qkv_in.size(-1))) {
    return call_reference<Pair(const at::Tensor&, const OptionalTensor&, double, double, const OptionalTensor&)>(
        "bertfast_reference::attention_padded_fwd", qkv_in, mask, scale, dropout_p, rng);
  }
  const std::vector<Sequence> sequences = padded_sequences(qkv_in);
  const at::Tensor qkv = qkv_in.contiguous(), added = additive(mask, qkv);
  const int64_t batch = qkv.size(0), length = qkv.size(1), heads = qkv.size(3), size = qkv.size(4);
  AttentionProblem p = describe(qkv, heads, size, scale, dropout_p, rng);
  set_mask(p, added);
  return run_forward(qkv, p, sequences, length, at::empty({batch, length, heads, size}, qkv.options()),
                     at::empty({batch, heads, length}, qkv.options().dtype(at::kFloat)));
}

at::Tensor padded_backward(const at::Tensor& dout, const at::Tensor& qkv_in, const at::Tensor& out,
                           const at::Tensor& lse, const OptionalTensor& mask, double scale, double dropout_p,
                           const OptionalTensor& rng) {
  if (!takes(qkv_in, qkv_in.size(-1))) {
    return call_reference<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                     const OptionalTensor&, double, double, const OptionalTensor&)>(
        "bertfast_reference::attention_padded_bwd", dout, qkv_in, out, lse, mask, scale, dropout_p, rng);
  }
  const std::vector<Sequence> sequences = padded_sequences(qkv_in);
  const at::Tensor qkv = qkv_in.contiguous(), added = additive(mask, qkv);
  check_gradient(dout, qkv, out, lse);
  AttentionProblem p = describe(qkv, qkv.size(3), qkv.size(4), scale, dropout_p, rng);
  set_mask(p, added);
  return run_backward(qkv, p, sequences, qkv.size(1), dout, out);
}

}  // namespace

void run_attention(const AttentionProblem& p, const std::vector<AttentionItem>& items, int64_t longest) {
  const AttentionKernels& kernels = attention_kernels();
  run(items, kernels.forward_scratch(longest, p.size),
      [&](const AttentionItem& item, float* scratch) { kernels.forward(p, item, scratch); });
}

TORCH_LIBRARY_IMPL(bertfast, CPU, m) {
  m.impl("attention_fwd", &forward);
  m.impl("attention_bwd", &backward);
  m.impl("attention_padded_fwd", &padded_forward);
  m.impl("attention_padded_bwd", &padded_backward);
}

}  // namespace bertfast
