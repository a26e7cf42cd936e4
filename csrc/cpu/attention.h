// How the host cuts a packed batch for the attention kernels, for the op and for the whole encoder.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <vector>

#include "attention_kernels.h"

namespace bertfast {

struct Sequence {
  int64_t first_token, length, lse_base, lse_head;  // lse of (head, query) stands at lse_base + head * lse_head + query
};

constexpr int64_t kLargestHead = 256;

// The sequences that cu_seqlens [B + 1] int32 bounds in `tokens` packed tokens, checked; `longest` is set to the
// longest.
std::vector<Sequence> packed_sequences(const at::Tensor& cu_seqlens, int64_t tokens, int64_t max_seqlen,
                                       int64_t& longest);

// One item for each (sequence, head), where `cut` in pieces of queries if threads would be idle; longest first.
std::vector<AttentionItem> items_of(const std::vector<Sequence>& sequences, int64_t heads, bool cut);

// Forward of all items; p.out and p.lse are set.
void run_attention(const AttentionProblem& p, const std::vector<AttentionItem>& items, int64_t longest);

}  // namespace bertfast
