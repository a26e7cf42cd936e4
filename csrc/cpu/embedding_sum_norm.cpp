// embedding_sum_norm on a CPU: gather, sum, norm and dropout of a token in one pass. Ids are checked before any read.
// Backward: one pass writes dz [T, E] and reduces the norm's gradients; a second adds dz into the rows of each table,
// split over threads by columns, so that every row is added in token order whatever the number of threads.
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>

#include <vector>

#include "norm_host.h"

namespace bertfast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Triple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using OtherGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // all but the word table's

void check_ids(const at::Tensor& ids, int64_t tokens, int64_t rows, const char* name) {
  TORCH_CHECK_VALUE(ids.scalar_type() == at::kLong && ids.dim() == 1 && ids.numel() == tokens,
                    "embedding_sum_norm: ", name, " must be int64 [", tokens, "], got ", ids.scalar_type(), " ",
                    ids.sizes());
  const int64_t* data = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens; ++i) {
    TORCH_CHECK_INDEX(data[i] >= 0 && data[i] < rows, "embedding_sum_norm: ", name, " holds ", data[i],
                      " at flattened position ", i, ", but the table has ", rows, " rows (0 to ", rows - 1,
                      "); was the text tokenised for another model, or is it longer than the model's positions?");
  }
}

struct Inputs {
  at::Tensor ids[3], tables[3], weight;
  int64_t tokens, cols;
};

Inputs checked(const at::Tensor& input_ids, const at::Tensor& position_ids, const at::Tensor& segment_ids,
               const at::Tensor& word, const at::Tensor& position, const at::Tensor& segment,
               const at::Tensor& weight) {
  Inputs in{{input_ids.contiguous(), position_ids.contiguous(), segment_ids.contiguous()},
            {word.contiguous(), position.contiguous(), segment.contiguous()},
            as_float(weight),
            input_ids.numel(),
            word.size(1)};
  const char* names[3] = {"input_ids", "position_ids", "segment_ids"};
  for (int i = 0; i < 3; ++i) {
    TORCH_CHECK_VALUE(
        in.tables[i].dim() == 2 && in.tables[i].size(1) == in.cols && in.tables[i].scalar_type() == word.scalar_type(),
        "embedding_sum_norm: the three tables must share dtype and width");
    check_ids(in.ids[i], in.tokens, in.tables[i].size(0), names[i]);
  }
  TORCH_CHECK_VALUE(weight.numel() == in.cols, "embedding_sum_norm: the norm's parameters must have ", in.cols,
                    " elements");
  return in;
}

EmbeddingNorm describe(const Inputs& in, double p, const OptionalTensor& rng) {
  EmbeddingNorm work{};
  work.cols = in.cols;
  work.word_ids = in.ids[0].const_data_ptr<int64_t>();
  work.position_ids = in.ids[1].const_data_ptr<int64_t>();
  work.segment_ids = in.ids[2].const_data_ptr<int64_t>();
  work.word = in.tables[0].const_data_ptr();
  work.position = in.tables[1].const_data_ptr();
  work.segment = in.tables[2].const_data_ptr();
  work.weight = in.weight.const_data_ptr<float>();
  work.dropout = row_dropout(p, rng);
  return work;
}

Triple forward(const at::Tensor& input_ids, const at::Tensor& position_ids, const at::Tensor& segment_ids,
               const at::Tensor& word, const at::Tensor& position, const at::Tensor& segment, const at::Tensor& weight,
               const at::Tensor& bias, int64_t padding_idx, double eps, double dropout_p, const OptionalTensor& rng) {
  if (!is_kernel_dtype(word)) {
    return call_reference<Triple(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                 const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                                 double, double, const OptionalTensor&)>(
        "bertfast_reference::embedding_sum_norm_fwd", input_ids, position_ids, segment_ids, word, position, segment,
        weight, bias, padding_idx, eps, dropout_p, rng);
  }
  const Inputs in = checked(input_ids, position_ids, segment_ids, word, position, segment, weight);
  TORCH_CHECK_VALUE(bias.numel() == in.cols, "embedding_sum_norm: the norm's parameters must have ", in.cols,
                    " elements");
  const at::Tensor bias_f = as_float(bias);
  at::Tensor y = at::empty({in.tokens, in.cols}, word.options());
  at::Tensor mean = at::empty({in.tokens}, word.options().dtype(at::kFloat)), rstd = at::empty_like(mean);
  EmbeddingNorm work = describe(in, dropout_p, rng);
  work.norm_bias = bias_f.const_data_ptr<float>();
  work.eps = static_cast<float>(eps);
  work.y = y.mutable_data_ptr();
  work.mean = mean.mutable_data_ptr<float>();
  work.rstd = rstd.mutable_data_ptr<float>();
  at::parallel_for(0, in.tokens, kRowGrain, [&](int64_t begin, int64_t end) {
    norm_kernels().embedding_norm(storage_of(word), work, begin, end);
  });
  return {y, mean, rstd};
}

// Sum of dz over the tokens of each row that occurs. Sums are float, in slots by order of first appearance, so that a
// bfloat16 table of 30,000 rows needs no float copy of itself. Only these rows of `gradient` are written, or added to.
void add_rows(const at::Tensor& ids, const at::Tensor& dz, int64_t skip, bool add, at::Tensor& gradient) {
  const int64_t tokens = ids.numel(), cols = dz.size(1);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  std::vector<int32_t> slot_of(gradient.size(0), -1);
  std::vector<int64_t> rows;
  for (int64_t t = 0; t < tokens; ++t) {
    if (id[t] != skip && slot_of[id[t]] < 0) {
      slot_of[id[t]] = static_cast<int32_t>(rows.size());
      rows.push_back(id[t]);
    }
  }
  at::Tensor sums = at::zeros({static_cast<int64_t>(rows.size()), cols}, dz.options());
  float* sum = sums.mutable_data_ptr<float>();
  const float* source = dz.const_data_ptr<float>();
  constexpr int64_t kColumns = 64;  // four cache lines: no line is shared by two threads
  at::parallel_for(0, (cols + kColumns - 1) / kColumns, 1, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kColumns, width = std::min(cols, last * kColumns) - begin;
    for (int64_t t = 0; t < tokens; ++t) {
      if (id[t] == skip) continue;
      norm_kernels().add_row(sum + slot_of[id[t]] * cols + begin, source + t * cols + begin, width);
    }
  });
  const at::Tensor places = at::tensor(rows, at::kLong);
  if (add) sums.add_(gradient.index_select(0, places));
  gradient.index_copy_(0, places, sums.to(gradient.scalar_type()));
}

at::Tensor table_gradient(const at::Tensor& ids, const at::Tensor& dz, const at::Tensor& table, int64_t skip) {
  at::Tensor gradient = at::zeros_like(table);
  add_rows(ids, dz, skip, false, gradient);
  return gradient;
}

struct TokenGradients {
  at::Tensor dz, sums;
};

// The pass over tokens: dz [T, E] and the norm's gradients.
TokenGradients token_gradients(const Inputs& in, const at::Tensor& dy_in, const at::Tensor& mean,
                               const at::Tensor& rstd, double dropout_p, const OptionalTensor& rng) {
  const at::ScalarType storage = in.tables[0].scalar_type();
  TORCH_CHECK_VALUE(dy_in.dim() == 2 && dy_in.size(0) == in.tokens && dy_in.size(1) == in.cols &&
                        mean.numel() == in.tokens && rstd.numel() == in.tokens,
                    "embedding_sum_norm: dy, mean and rstd must come from the forward call on these ids");
  const at::Tensor dy = dy_in.to(storage).contiguous(), mean_c = mean.contiguous(), rstd_c = rstd.contiguous();
  at::Tensor dz = at::empty({in.tokens, in.cols}, in.tables[0].options().dtype(at::kFloat));
  EmbeddingNormGradient work{describe(in, dropout_p, rng), dy.const_data_ptr(), dz.mutable_data_ptr<float>()};
  // The kernel only reads the statistics; the struct is shared with forward, which writes them.
  work.forward.mean = const_cast<float*>(mean_c.const_data_ptr<float>());
  work.forward.rstd = const_cast<float*>(rstd_c.const_data_ptr<float>());
  at::Tensor sums = reduce_rows(3, in.tokens, in.cols, [&](float* partial, int64_t begin, int64_t end) {
    norm_kernels().embedding_norm_gradient(storage_of(in.tables[0]), work, partial, begin, end);
  });
  return {dz, sums};
}

Gradients backward(const at::Tensor& dy_in, const at::Tensor& input_ids, const at::Tensor& position_ids,
                   const at::Tensor& segment_ids, const at::Tensor& word, const at::Tensor& position,
                   const at::Tensor& segment, const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd,
                   int64_t padding_idx, double dropout_p, const OptionalTensor& rng) {
  if (!is_kernel_dtype(word)) {
    return call_reference<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                    const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                    const at::Tensor&, const at::Tensor&, int64_t, double, const OptionalTensor&)>(
        "bertfast_reference::embedding_sum_norm_bwd", dy_in, input_ids, position_ids, segment_ids, word, position,
        segment, weight, mean, rstd, padding_idx, dropout_p, rng);
  }
  const Inputs in = checked(input_ids, position_ids, segment_ids, word, position, segment, weight);
  const auto [dz, sums] = token_gradients(in, dy_in, mean, rstd, dropout_p, rng);
  return {table_gradient(in.ids[0], dz, in.tables[0], padding_idx), table_gradient(in.ids[1], dz, in.tables[1], -1),
          table_gradient(in.ids[2], dz, in.tables[2], -1), sums[0].to(weight.scalar_type()).clone(),
          sums[1].to(weight.scalar_type()).clone()};
}

OtherGradients tied_backward(at::Tensor dword, const at::Tensor& dy, const at::Tensor& input_ids,
                             const at::Tensor& position_ids, const at::Tensor& segment_ids, const at::Tensor& word,
                             const at::Tensor& position, const at::Tensor& segment, const at::Tensor& weight,
                             const at::Tensor& mean, const at::Tensor& rstd, int64_t padding_idx, double dropout_p,
                             const OptionalTensor& rng) {
  TORCH_CHECK_VALUE(dword.sizes() == word.sizes() && dword.scalar_type() == word.scalar_type(),
                    "embedding_sum_norm: dword must have the shape and dtype of word");
  if (!is_kernel_dtype(word)) {
    return call_reference<OtherGradients(
        at::Tensor, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
        const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, double,
        const OptionalTensor&)>("bertfast_reference::embedding_sum_norm_tied_bwd", dword, dy, input_ids, position_ids,
                                segment_ids, word, position, segment, weight, mean, rstd, padding_idx, dropout_p, rng);
  }
  const Inputs in = checked(input_ids, position_ids, segment_ids, word, position, segment, weight);
  const auto [dz, sums] = token_gradients(in, dy, mean, rstd, dropout_p, rng);
  add_rows(in.ids[0], dz, padding_idx, true, dword);
  return {table_gradient(in.ids[1], dz, in.tables[1], -1), table_gradient(in.ids[2], dz, in.tables[2], -1),
          sums[0].to(weight.scalar_type()).clone(), sums[1].to(weight.scalar_type()).clone()};
}

}  // namespace

TORCH_LIBRARY_IMPL(bertfast, CPU, m) {
  m.impl("embedding_sum_norm_fwd", &forward);
  m.impl("embedding_sum_norm_bwd", &backward);
  m.impl("embedding_sum_norm_tied_bwd", &tied_backward);
}

}  // namespace bertfast
